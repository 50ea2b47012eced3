//! Rotary positions: their frequencies, computed here and nowhere else.

use crate::error::{Error, Result};
use serde_json::Value;

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
    /// From `rope_scaling` or, in newer files, `rope_parameters`, which keep `theta` in there.
    ///
    /// # Errors
    /// [`Error::Config`] naming `field` for another type than `default`, `linear` and `llama3`,
    /// and for numbers that are missing or make no sense.
    pub(super) fn from_json(field: &'static str, theta: f64, value: &Value) -> Result<Self> {
        let object = value
            .as_object()
            .ok_or_else(|| Error::config(field, "is not an object"))?;
        if let Some(factor) = object.get("partial_rotary_factor")
            && factor.as_f64() != Some(1.0)
        {
            let reason = format!("partial_rotary_factor {factor} is not supported");
            return Err(Error::config(field, reason));
        }
        let theta = object.get("rope_theta").map_or(Some(theta), Value::as_f64);
        let theta = theta.ok_or_else(|| Error::config(field, "rope_theta is not a number"))?;
        let number = |name: &str| {
            let number = object.get(name).and_then(Value::as_f64);
            let number = number.filter(|n| n.is_finite() && *n > 0.0);
            number.ok_or_else(|| Error::config(field, format!("{name} must be a number above 0")))
        };
        let kind = object.get("rope_type").or_else(|| object.get("type"));
        let scaling = match kind.map(|kind| kind.as_str().unwrap_or_default()) {
            Some("default") => None,
            // Without a type, nothing but the base may be in there.
            None if object.keys().all(|name| name == "rope_theta") => None,
            Some("linear") => Some(RopeScaling::Linear {
                factor: number("factor")?,
            }),
            Some("llama3") => Some(RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_positions: number("original_max_position_embeddings")?,
            }),
            other => {
                let other = other.unwrap_or("none");
                let reason = format!("type `{other}` is not supported, use linear or llama3");
                return Err(Error::config(field, reason));
            }
        };
        match scaling {
            Some(RopeScaling::Llama3 {
                low_freq_factor: low,
                high_freq_factor: high,
                ..
            }) if low >= high => {
                let reason = format!("low_freq_factor {low} is not below high_freq_factor {high}");
                Err(Error::config(field, reason))
            }
            scaling => Ok(Self { theta, scaling }),
        }
    }

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
