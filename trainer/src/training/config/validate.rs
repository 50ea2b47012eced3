//! Checks of a training config. Each adds what it finds to a list, so that all mistakes are told at
//! once; what only follows from another mistake is left out.

use scone_model::{DeviceChoice, Dtype, Precision};

use super::optimizer::OptimizerConfig;
use super::schema::{
    ControlKind, DataConfig, Family, FgramModelShape, ModelShape, TrainConfig, Trainable,
};
use super::training::TrainingConfig;

/// The mistakes found so far, one line each.
#[derive(Debug, Default)]
pub(super) struct Mistakes(pub(super) Vec<String>);

impl Mistakes {
    /// Adds `mistake` unless `right`.
    fn unless(&mut self, right: bool, mistake: impl FnOnce() -> String) {
        if !right {
            self.0.push(mistake());
        }
    }

    fn positive(&mut self, name: &str, value: usize) {
        self.unless(value > 0, || format!("{name} must be at least 1"));
    }
}

/// Section `data` by itself.
pub(super) fn data(data: &DataConfig, found: &mut Mistakes) {
    found.unless(!data.train.is_empty(), || "data.train is empty".to_owned());
    for source in &data.train {
        let (path, weight) = (source.path.display(), source.weight);
        found.unless((1e-6..=1e6).contains(&weight), || {
            format!("data.train: the weight of {path} is {weight}, must be 0.000001 to 1000000")
        });
    }
}

/// `max_fgrams` by itself.
pub(super) fn max_fgrams(max_fgrams: &usize, found: &mut Mistakes) {
    found.positive("max_fgrams", *max_fgrams);
}

/// Section `control` by itself.
pub(super) fn control(control: &ControlKind, found: &mut Mistakes) {
    if let ControlKind::Bigram { rows } = control {
        found.unless((1..=u32::MAX as usize / 2).contains(rows), || {
            format!("control.rows = {rows} is not 1 to {}", u32::MAX / 2)
        });
    }
}

/// Section `model` by itself.
pub(super) fn model(model: &ModelShape, found: &mut Mistakes) {
    let (heads, kv_heads) = (model.num_attention_heads, model.num_key_value_heads());
    found.positive("model.hidden_size", model.hidden_size);
    found.positive("model.num_hidden_layers", model.num_hidden_layers);
    found.positive("model.num_attention_heads", heads);
    if model.num_key_value_heads.is_some() {
        found.positive("model.num_key_value_heads", kv_heads);
    }
    if model.intermediate_size.is_some() {
        found.positive("model.intermediate_size", model.intermediate_size());
    }
    found.positive(
        "model.max_position_embeddings",
        model.max_position_embeddings,
    );
    found.unless(model.rope_theta > 0.0, || {
        "model.rope_theta must be above 0".to_owned()
    });
    if model.hidden_size > 0 && heads > 0 && kv_heads > 0 {
        model_heads(model, found);
    }
}

/// How width and heads divide; none of them is 0.
fn model_heads(model: &ModelShape, found: &mut Mistakes) {
    let (heads, kv_heads) = (model.num_attention_heads, model.num_key_value_heads());
    let divides = model.hidden_size.is_multiple_of(heads);
    found.unless(divides, || {
        format!(
            "model.num_attention_heads = {heads} does not divide model.hidden_size = {}",
            model.hidden_size
        )
    });
    found.unless(heads.is_multiple_of(kv_heads), || {
        format!(
            "model.num_key_value_heads = {kv_heads} does not divide model.num_attention_heads = \
             {heads}"
        )
    });
    match model.family {
        Family::Gpt2 => found.unless(kv_heads == heads, || {
            "model.num_key_value_heads is not a field of the gpt2 family".to_owned()
        }),
        Family::Llama => {
            let even = (model.hidden_size / heads).is_multiple_of(2);
            found.unless(!divides || even, || {
                "model.hidden_size / model.num_attention_heads must be even for rotary positions"
                    .to_owned()
            });
        }
    }
}

/// Section `fgram_model` by itself.
pub(super) fn fgram_model(fgram_model: &FgramModelShape, found: &mut Mistakes) {
    found.positive(
        "fgram_model.num_hidden_layers",
        fgram_model.num_hidden_layers,
    );
}

/// Section `training` by itself.
pub(super) fn training(training: &TrainingConfig, found: &mut Mistakes) {
    let (batch, sequence) = (training.batch_tokens, training.sequence_length);
    found.positive("training.sequence_length", sequence);
    found.unless(
        sequence == 0 || (batch > 0 && batch.is_multiple_of(sequence)),
        || {
            format!(
                "training.batch_tokens = {batch} is not a multiple of training.sequence_length = \
                 {sequence}"
            )
        },
    );
    let parts = training.accumulate;
    found.positive("training.accumulate", parts);
    let windows = batch.checked_div(sequence).unwrap_or(0);
    found.unless(parts == 0 || windows.is_multiple_of(parts), || {
        format!(
            "training.accumulate = {parts} does not divide the {windows} windows of a step \
             (training.batch_tokens / training.sequence_length)"
        )
    });
    found.unless(training.patience != Some(0), || {
        "training.patience must be at least 1".to_owned()
    });
    found.unless(!training.keeps_best() || training.eval_every > 0, || {
        "training.keep_best and training.patience need training.eval_every".to_owned()
    });
    found.unless(training.spike.is_none_or(|nats| nats > 0.0), || {
        "training.spike must be above 0".to_owned()
    });
    let lengths = [
        training.steps.is_some(),
        training.tokens.is_some(),
        training.epochs.is_some(),
    ];
    let given = lengths.into_iter().filter(|&given| given).count();
    found.unless(given == 1, || {
        "give exactly one of training.steps, training.tokens and training.epochs".to_owned()
    });
    let epochs = training.epochs.is_none_or(|n| n.is_finite() && n > 0.0);
    let zero = training.steps == Some(0) || training.tokens == Some(0) || !epochs;
    found.unless(!zero, || {
        "training.steps, training.tokens or training.epochs must be above 0".to_owned()
    });
    found.unless(training.log_every > 0, || {
        "training.log_every must be at least 1".to_owned()
    });
    found.unless(training.threads != Some(0), || {
        "training.threads must be at least 1".to_owned()
    });
}

/// Section `optimizer` by itself.
pub(super) fn optimizer(optimizer: &OptimizerConfig, found: &mut Mistakes) {
    let lr = optimizer.lr;
    found.unless(lr.is_finite() && lr > 0.0, || {
        "optimizer.lr must be above 0".to_owned()
    });
    let floor = optimizer.min_lr_ratio;
    found.unless((0.0..=1.0).contains(&floor), || {
        format!("optimizer.min_lr_ratio = {floor} is not in [0, 1]")
    });
    for (name, value) in [
        ("beta1", optimizer.beta1),
        ("beta2", optimizer.beta2),
        ("momentum", optimizer.momentum),
    ] {
        found.unless((0.0..1.0).contains(&value), || {
            format!("optimizer.{name} = {value} is not in [0, 1)")
        });
    }
    let groups = &optimizer.groups;
    for (name, value) in [
        ("embeddings", groups.embeddings),
        ("matrices", groups.matrices),
        ("vectors", groups.vectors),
        ("fgram_model", groups.fgram_model),
    ] {
        found.unless(value.is_finite() && value >= 0.0, || {
            format!("optimizer.groups.{name} = {value} is not 0 or more")
        });
    }
    found.unless(optimizer.eps > 0.0, || {
        "optimizer.eps must be above 0".to_owned()
    });
    found.unless(optimizer.weight_decay >= 0.0, || {
        "optimizer.weight_decay must not be negative".to_owned()
    });
    found.unless(optimizer.clip >= 0.0, || {
        "optimizer.clip must not be negative".to_owned()
    });
}

/// What one section demands of another.
pub(super) fn together(config: &TrainConfig, found: &mut Mistakes) {
    found.unless(config.dtype == Dtype::F32, || {
        format!("dtype is {}; training computes in f32", config.dtype)
    });
    found.unless(!config.tf32 || config.device != DeviceChoice::Cpu, || {
        "tf32 is for GPUs; device is cpu".to_owned()
    });
    let f32s = config.training.precision == Precision::F32;
    found.unless(f32s || config.device == DeviceChoice::Cpu, || {
        format!(
            "training.precision: bf16 is for CPUs (tf32 is what GPUs have); device is {}",
            config.device
        )
    });
    found.unless(
        config.max_fgrams.is_none() || config.fgrams.is_some(),
        || "max_fgrams (or a preset) without fgrams".to_owned(),
    );
    match config.control {
        None => {}
        Some(ControlKind::Direct) => found.unless(config.fgrams.is_some(), || {
            "control direct has a row for each f-gram, and there are no fgrams".to_owned()
        }),
        Some(_) => found.unless(config.fgrams.is_none(), || {
            "this control has rows of tokens, not of f-grams: set fgrams=null".to_owned()
        }),
    }
    found.unless(
        config.control.is_none() || config.trainable == Trainable::All,
        || "control is for trainable: all".to_owned(),
    );
    found.unless(
        !config.training.keeps_best() || !config.data.valid.is_empty(),
        || "training.keep_best and training.patience need data.valid".to_owned(),
    );
    match (&config.model, &config.base) {
        (Some(model), None) => fresh(config, model, found),
        (model, _) => based(config, model.is_some(), found),
    }
    found.unless(
        config.trainable != Trainable::FgramModel || config.fgrams.is_some(),
        || "trainable is fgram_model, but there are no fgrams".to_owned(),
    );
    found.unless(
        config.trainable != Trainable::Embeddings || config.fgrams.is_none(),
        || "trainable is embeddings, which has no f-gram model: set fgrams=null".to_owned(),
    );
}

/// A main model from random weights.
fn fresh(config: &TrainConfig, model: &ModelShape, found: &mut Mistakes) {
    found.unless(config.trainable == Trainable::All, || {
        "trainable leaves out weights of the main model, which is for a `base`: give one, or \
         trainable=all"
            .to_owned()
    });
    // Without a number of its own A has the main model's heads, which are checked there.
    if let Some(heads) = config.fgram_model.num_attention_heads {
        let width = model.hidden_size;
        found.unless(heads > 0 && width.is_multiple_of(heads), || {
            format!(
                "fgram_model.num_attention_heads = {heads} does not divide model.hidden_size = \
                 {width}"
            )
        });
    }
    let (sequence, limit) = (
        config.training.sequence_length,
        model.max_position_embeddings,
    );
    found.unless(sequence <= limit, || {
        format!(
            "training.sequence_length = {sequence} is above model.max_position_embeddings = {limit}"
        )
    });
}

/// A main model that there is already; what depends on its sizes is checked when it is read.
fn based(config: &TrainConfig, has_model: bool, found: &mut Mistakes) {
    found.unless(!has_model, || {
        "give one of `base` and `model`: a base has its own shape".to_owned()
    });
    found.unless(!config.fgram_model.final_norm, || {
        "fgram_model.final_norm with a `base`: a norm would scale rows, and the first step would \
         not be the base model"
            .to_owned()
    });
}
