//! The configuration of a training run: a YAML file and `key.sub=value` overrides.

mod optimizer;
mod overrides;
mod presets;
mod read;
mod resume;
mod schema;
mod source;
mod training;
mod validate;

pub use optimizer::{GroupScales, OptimizerConfig, OptimizerKind, ParameterGroup};
pub(crate) use overrides::apply as apply_override;
pub use resume::{Difference, check_resumable, differences};
pub use schema::{
    ControlKind, DataConfig, Family, FgramModelShape, ModelShape, OutputConfig, OutputDtype,
    TrainConfig, Trainable,
};
pub use source::Source;
pub use training::TrainingConfig;

#[cfg(test)]
mod tests;
