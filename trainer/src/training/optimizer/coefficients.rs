//! The scalars of one update.

use crate::training::config::OptimizerConfig;

/// What every element of a parameter is updated with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coefficients {
    /// Factor on the gradient.
    pub(super) clip: f32,
    pub(super) beta1: f32,
    pub(super) beta2: f32,
    pub(super) eps: f32,
    /// Factor on the parameter, before the step.
    pub(super) decay: f32,
    /// Learning rate with the first moment's bias correction.
    pub(super) rate: f32,
    /// Bias correction of the second moment.
    pub(super) second_scale: f32,
    /// Learning rate.
    pub(super) lr: f32,
    /// Muon's decay of the momentum.
    pub(super) momentum: f32,
}

impl Coefficients {
    /// Those of the 1-based update `step` of a matrix with learning rate `lr`, where the gradients
    /// of all parameters have norm `grad_norm`.
    pub(super) fn new(config: &OptimizerConfig, step: u64, grad_norm: f64, lr: f64) -> Self {
        let clip = if config.clip > 0.0 && grad_norm > config.clip {
            config.clip / grad_norm
        } else {
            1.0
        };
        let power = i32::try_from(step).unwrap_or(i32::MAX);
        Self {
            clip: clip as f32,
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            eps: config.eps as f32,
            decay: (1.0 - lr * config.weight_decay) as f32,
            rate: (lr / (1.0 - config.beta1.powi(power))) as f32,
            second_scale: (1.0 / (1.0 - config.beta2.powi(power))) as f32,
            lr: lr as f32,
            momentum: config.momentum as f32,
        }
    }

    /// The same for a parameter of `rank` dimensions: norms and biases are vectors, and they are
    /// not pulled towards zero.
    pub(super) fn for_rank(self, rank: usize) -> Self {
        let decay = if rank >= 2 { self.decay } else { 1.0 };
        Self { decay, ..self }
    }
}
