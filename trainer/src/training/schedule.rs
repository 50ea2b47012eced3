//! The learning rate of each step: linear warm-up, then a half cosine down to a share of the peak.

use super::config::OptimizerConfig;

/// Learning rate by step; a pure function, so that a resumed run needs only the step number.
#[derive(Debug, Clone)]
pub struct Schedule {
    peak: f64,
    floor: f64,
    warmup: u64,
    total: u64,
}

impl Schedule {
    /// The schedule of a run of `total_steps`.
    pub fn new(config: &OptimizerConfig, total_steps: u64) -> Self {
        Self {
            peak: config.lr,
            floor: config.lr * config.min_lr_ratio,
            warmup: config.warmup_steps,
            total: total_steps,
        }
    }

    /// Learning rate of the 0-based `step`. Warm-up ends at the peak; the last step is at the
    /// floor.
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let length = self.total.saturating_sub(self.warmup + 1).max(1);
        let done = ((step - self.warmup) as f64 / length as f64).min(1.0);
        self.floor + 0.5 * (self.peak - self.floor) * (1.0 + (std::f64::consts::PI * done).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(warmup_steps: u64, total: u64) -> Schedule {
        let config = OptimizerConfig {
            lr: 2.0,
            warmup_steps,
            ..OptimizerConfig::default()
        };
        Schedule::new(&config, total)
    }

    #[test]
    fn warms_up_linearly_peaks_and_ends_at_the_floor() {
        let schedule = schedule(4, 105);
        assert_eq!(schedule.lr(0), 0.5);
        assert_eq!(schedule.lr(3), 2.0);
        assert_eq!(schedule.lr(4), 2.0);
        assert!((schedule.lr(54) - 1.1).abs() < 1e-12);
        assert!((schedule.lr(104) - 0.2).abs() < 1e-12);
        assert!((schedule.lr(1000) - 0.2).abs() < 1e-12);
    }

    #[test]
    fn runs_shorter_than_their_warmup_stay_finite() {
        let schedule = schedule(10, 3);
        assert!((0..20).all(|step| schedule.lr(step).is_finite() && schedule.lr(step) > 0.0));
        assert_eq!(
            super::Schedule::new(&OptimizerConfig::default(), 0).lr(0),
            1e-5
        );
    }
}
