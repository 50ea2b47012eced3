//! How long steps take, and how many tokens of prompts go into one so that running streams do not
//! wait long.

use std::time::Duration;

/// Share of a decode step's time that prompts may add to it: streams wait less than two steps.
const SHARE: f64 = 0.8;
/// Weight of a new measurement.
const NEW: f64 = 0.2;
/// Fewest tokens of prompts in a step, so that they go on whatever was measured.
const LEAST_TOKENS: usize = 8;

/// Measured times. Recent steps count most.
#[derive(Clone, Copy, Debug)]
pub struct StepPace {
    /// Upper limit of the time that prompts may add to a step.
    target: Duration,
    /// Of a step that only decodes, in seconds.
    decode: Option<f64>,
    /// Of one prompt token, in seconds.
    prompt_token: Option<f64>,
}

impl StepPace {
    /// Nothing is measured yet.
    pub fn new(target: Duration) -> Self {
        Self {
            target,
            decode: None,
            prompt_token: None,
        }
    }

    /// Tokens of prompts that may join a step in which streams decode.
    pub fn prompt_tokens(&self) -> usize {
        let Some(per_token) = self.prompt_token else {
            return 4 * LEAST_TOKENS;
        };
        let target = self.target.as_secs_f64();
        let share = self
            .decode
            .map_or(target, |decode| target.min(SHARE * decode));
        ((share / per_token) as usize).max(LEAST_TOKENS)
    }

    /// A step of so many decoding streams and prompt tokens took so long.
    pub fn step_took(&mut self, streams: usize, prompt_tokens: usize, took: Duration) {
        let took = took.as_secs_f64();
        if prompt_tokens == 0 {
            self.decode = Some(mean(self.decode, took));
            return;
        }
        let decode = match streams {
            0 => 0.0,
            _ => self.decode.unwrap_or(0.0),
        };
        // Not less than a tenth of the step: the decoding part may have been short this time.
        let of_prompts = (took - decode).max(took / 10.0);
        let per_token = of_prompts / prompt_tokens as f64;
        self.prompt_token = Some(mean(self.prompt_token, per_token));
    }
}

fn mean(old: Option<f64>, new: f64) -> f64 {
    old.map_or(new, |old| old + NEW * (new - old))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn prompts_add_less_than_a_decode_step_and_never_more_than_the_target() {
        let mut pace = StepPace::new(50 * MS);
        assert!(pace.prompt_tokens() >= LEAST_TOKENS);
        for _ in 0..50 {
            pace.step_took(8, 0, 20 * MS);
            pace.step_took(8, 16, 36 * MS);
        }
        // One token takes 1 ms.
        assert!((14..=16).contains(&pace.prompt_tokens()), "{pace:?}");
        for _ in 0..50 {
            pace.step_took(8, 0, 100 * MS);
        }
        assert!((49..=51).contains(&pace.prompt_tokens()), "{pace:?}");
        for _ in 0..50 {
            pace.step_took(8, 0, MS / 100);
        }
        assert_eq!(pace.prompt_tokens(), LEAST_TOKENS);
    }
}
