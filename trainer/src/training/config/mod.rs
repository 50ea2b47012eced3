//! The configuration of a training run: a YAML file and `key.sub=value` overrides.

mod overrides;
mod presets;
mod read;
mod resume;
mod schema;
mod validate;

pub use resume::{Difference, check_resumable, differences};
pub use schema::{
    DataConfig, Family, FgramModelShape, GroupScales, ModelShape, OptimizerConfig, OptimizerKind,
    OutputConfig, OutputDtype, ParameterGroup, TrainConfig, Trainable, TrainingConfig,
};

#[cfg(test)]
mod tests;
