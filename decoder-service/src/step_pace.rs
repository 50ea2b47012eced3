//! How long steps take, and how many tokens of prompts go into one so that running streams do not
//! wait long.

use std::time::Duration;

/// Share of a decode step's time that prompts may add to it: streams wait less than two steps, with
/// room for what single steps take more than the mean.
const SHARE: f64 = 0.6;
/// Weight of a new measurement.
const NEW: f64 = 0.2;
/// Fewest tokens of prompts in a step, so that they go on whatever was measured. Of a model whose
/// weights are read fast, three or four prompt tokens already take as long as a step of eight streams.
const LEAST_TOKENS: usize = 2;
/// Prompt tokens beside streams when nothing is measured yet.
const FIRST_TOKENS: usize = 8;
/// How much longer a prompt token takes among few than among many.
const FEW: f64 = 2.0;

/// Measured times. Recent steps count most.
#[derive(Clone, Copy, Debug)]
pub struct StepPace {
    /// Upper limit of the time that prompts may add to a step.
    target: Duration,
    /// Streams of the last step that had some.
    streams: f64,
    /// Of steps that only decode.
    decode: Option<Decode>,
    /// Of one prompt token, in seconds.
    prompt_token: Option<f64>,
}

/// Means of steps that only decode.
#[derive(Clone, Copy, Debug)]
struct Decode {
    streams: f64,
    seconds: f64,
}

impl StepPace {
    /// Nothing is measured yet.
    pub fn new(target: Duration) -> Self {
        Self {
            target,
            streams: 0.0,
            decode: None,
            prompt_token: None,
        }
    }

    /// Tokens of prompts that may join a step in which streams decode.
    pub fn prompt_tokens(&self) -> usize {
        let Some(per_token) = self.prompt_token else {
            return FIRST_TOKENS;
        };
        let target = self.target.as_secs_f64();
        let share = self.decode.map_or(target, |decode| {
            // A stream more costs about what a prompt token does; the weights are read for one as well.
            let ordinary = decode.seconds + (self.streams - decode.streams) * per_token;
            target.min(SHARE * ordinary.max(decode.seconds / 4.0))
        });
        ((share / per_token) as usize).max(LEAST_TOKENS)
    }

    /// A step of so many decoding streams and prompt tokens took so long.
    pub fn step_took(&mut self, streams: usize, prompt_tokens: usize, took: Duration) {
        let took = took.as_secs_f64();
        let streams = streams as f64;
        if streams > 0.0 {
            self.streams = streams;
        }
        if prompt_tokens == 0 {
            self.decode = Some(Decode {
                streams: mean(self.decode.map(|of| of.streams), streams),
                seconds: mean(self.decode.map(|of| of.seconds), took),
            });
            return;
        }
        let tokens = prompt_tokens as f64;
        if streams == 0.0 {
            self.prompt_token.get_or_insert(FEW * took / tokens);
            return;
        }
        let (known, decode) = match self.decode {
            Some(decode) => (decode.streams, decode.seconds),
            None => (0.0, 0.0),
        };
        // Streams beyond those of the steps measured count as prompt tokens, missing ones as well.
        let more = tokens + (streams - known).max(0.0);
        let fewer = (known - streams).max(0.0) * self.prompt_token.unwrap_or(0.0);
        // Not less than a tenth of the step: the decoding part may have been short this time.
        let of_prompts = (took - decode + fewer).max(took / 10.0);
        self.prompt_token = Some(mean(self.prompt_token, of_prompts / more));
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
        assert!((11..=12).contains(&pace.prompt_tokens()), "{pace:?}");
        for _ in 0..50 {
            pace.step_took(8, 0, 100 * MS);
        }
        assert!((49..=51).contains(&pace.prompt_tokens()), "{pace:?}");
        for _ in 0..50 {
            pace.step_took(8, 0, MS / 100);
        }
        assert_eq!(pace.prompt_tokens(), LEAST_TOKENS);
    }

    #[test]
    fn streams_that_join_make_ordinary_steps_longer() {
        let mut pace = StepPace::new(50 * MS);
        for _ in 0..50 {
            pace.step_took(1, 0, 5 * MS);
        }
        // Prompts of many others: a token takes 1 ms, a stream more as well.
        for streams in 1..=26u32 {
            let tokens = pace.prompt_tokens();
            let took = (5 + streams - 1 + tokens as u32) * MS;
            pace.step_took(streams as usize, tokens, took);
        }
        assert!((17..=18).contains(&pace.prompt_tokens()), "{pace:?}");
        pace.step_took(1, 3, 8 * MS);
        assert!((2..=3).contains(&pace.prompt_tokens()), "{pace:?}");
    }

    #[test]
    fn a_prompt_alone_is_only_a_first_guess() {
        let mut pace = StepPace::new(50 * MS);
        pace.step_took(0, 256, 256 * MS);
        assert_eq!(pace.prompt_tokens(), 25);
        for _ in 0..50 {
            pace.step_took(8, 0, 20 * MS);
            pace.step_took(8, 4, 26 * MS);
        }
        let among_few = pace.prompt_tokens();
        pace.step_took(0, 256, 128 * MS);
        assert_eq!(pace.prompt_tokens(), among_few);
    }
}
