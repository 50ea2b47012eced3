//! Rotary positions: their frequencies, computed here and nowhere else.

/// How the heads of a model turn with the position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the angles.
    pub theta: f64,
    /// What stretches the angles for longer texts; `None` as trained.
    pub scaling: Option<RopeScaling>,
}

/// How rotary frequencies are stretched, as `rope_scaling` says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Every frequency divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// llama 3: low frequencies divided by `factor`, high ones as they are, those between blended.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Turns within the original context below which a frequency is low.
        low_freq_factor: f64,
        /// Turns within the original context above which a frequency is high.
        high_freq_factor: f64,
        /// Positions of the model before it was stretched.
        original_positions: f64,
    },
}

impl Rope {
    /// Radians per position of the `head_dim / 2` pairs of a head, `theta^(-i / (Dh/2))` before
    /// scaling. Element i of a head turns with element `i + Dh/2`.
    pub(crate) fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let half = head_dim / 2;
        let unscaled = (0..half).map(|i| self.theta.powf(-(i as f64) / half as f64));
        match self.scaling {
            None => unscaled.map(|f| f as f32).collect(),
            Some(scaling) => unscaled.map(|f| scaling.apply(f) as f32).collect(),
        }
    }
}

impl RopeScaling {
    fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_positions,
            } => {
                let turns = original_positions * frequency / std::f64::consts::TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - kept) * frequency / factor + kept * frequency
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_divides_low_frequencies_and_keeps_high_ones() {
        let plain = Rope {
            theta: 500_000.0,
            scaling: None,
        };
        let with = |scaling| Rope {
            scaling: Some(scaling),
            ..plain
        };
        let before = plain.frequencies(128);
        let linear = with(RopeScaling::Linear { factor: 4.0 }).frequencies(128);
        assert!(linear.iter().zip(&before).all(|(a, b)| *a == b / 4.0));
        let llama3 = with(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_positions: 8192.0,
        });
        let after = llama3.frequencies(128);
        assert_eq!(after[..29], before[..29]);
        assert!(
            after[35..]
                .iter()
                .zip(&before[35..])
                .all(|(a, b)| *a == b / 8.0)
        );
        let between = after[29..35].iter().zip(&before[29..35]);
        assert!(
            between.clone().all(|(a, b)| a < b && *a > b / 8.0),
            "{between:?}"
        );
    }
}
