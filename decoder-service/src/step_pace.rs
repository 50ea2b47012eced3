//! How long steps take, and how many tokens of prompts go into one so that running streams do not
//! wait long.

use std::{collections::VecDeque, time::Duration};

/// What a step may take, in ordinary steps: streams wait no longer than two.
const MOST: f64 = 1.7;
/// Share of an ordinary step's time that prompts may add to it: at most, where all steps take the
/// time that is expected, and at least, where they do not, so that prompts go on.
const SHARES: (f64, f64) = (0.3, 0.7);
/// Steps that count as recent, for what they took more than was expected.
const RECENT: usize = 64;
/// Steps that only decode which count as ordinary: few, as steps get longer with the context.
const ORDINARY: usize = 5;
/// One step of so many computes no prompts beside streams, to see what an ordinary one takes now.
const LOOK: usize = 16;
/// Weight of a new measurement of what prompt tokens take.
const NEW: f64 = 0.2;
/// Fewest tokens of prompts in a step, so that they go on whatever was measured. Of a model whose
/// weights are read fast, three or four prompt tokens already take as long as a step of eight streams.
const LEAST_TOKENS: usize = 2;
/// Prompt tokens beside streams when nothing is measured yet.
const FIRST_TOKENS: usize = 8;
/// How much longer a prompt token takes among few than among many.
const FEW: f64 = 2.0;

/// Measured times of recent steps.
#[derive(Clone, Debug)]
pub struct StepPace {
    /// Upper limit of the time that prompts may add to a step.
    target: Duration,
    /// Streams of the last step that had some.
    streams: f64,
    /// The last steps that only decode.
    decode: VecDeque<Decode>,
    /// Steps with streams and prompts since the last of those.
    mixed: usize,
    /// Of one prompt token, in seconds.
    prompt_token: Option<f64>,
    /// What steps took more than was expected, in seconds.
    late: VecDeque<f64>,
}

/// A step that only decodes.
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
            decode: VecDeque::with_capacity(ORDINARY),
            mixed: 0,
            prompt_token: None,
            late: VecDeque::with_capacity(RECENT),
        }
    }

    /// Tokens of prompts that may join a step in which streams decode; now and then none.
    pub fn prompt_tokens(&self) -> usize {
        if self.mixed >= LOOK - 1 {
            return 0;
        }
        let Some(per_token) = self.prompt_token else {
            return FIRST_TOKENS;
        };
        let target = self.target.as_secs_f64();
        let share = self.ordinary(self.streams).map_or(target, |ordinary| {
            let left = (MOST - 1.0) * ordinary - self.lateness();
            target.min(left.clamp(SHARES.0 * ordinary, SHARES.1 * ordinary))
        });
        // Rounded up: the first token costs more than the second (kernels compute rows in blocks), so
        // that a few that take all of the share would stay few for good.
        ((share / per_token).ceil() as usize).max(LEAST_TOKENS)
    }

    /// A step of so many decoding streams and prompt tokens took so long.
    pub fn step_took(&mut self, streams: usize, prompt_tokens: usize, took: Duration) {
        let (took, tokens) = (took.as_secs_f64(), prompt_tokens as f64);
        let streams = streams as f64;
        if streams == 0.0 {
            if prompt_tokens > 0 {
                self.prompt_token.get_or_insert(FEW * took / tokens);
            }
            return;
        }
        self.streams = streams;
        let ordinary = self.ordinary(streams);
        if prompt_tokens == 0 {
            if let Some(ordinary) = ordinary {
                push(&mut self.late, RECENT, took - ordinary);
            }
            let seconds = took;
            push(&mut self.decode, ORDINARY, Decode { streams, seconds });
            self.mixed = 0;
            return;
        }
        self.mixed += 1;
        if let (Some(ordinary), Some(per_token)) = (ordinary, self.prompt_token) {
            push(&mut self.late, RECENT, took - ordinary - tokens * per_token);
        }
        // Not less than a tenth of the step: the decoding part may have been short this time.
        let of_prompts = (took - ordinary.unwrap_or(0.0)).max(took / 10.0);
        let counted = match ordinary {
            Some(_) => tokens,
            // Streams count as prompt tokens while nothing is known of them.
            None => tokens + streams,
        };
        self.prompt_token = Some(mean(self.prompt_token, of_prompts / counted));
    }

    /// What nine of ten recent steps took more than was expected, at most. The rest is left out: now
    /// and then a machine stands still, and to allow for that would cost every prompt its time.
    fn lateness(&self) -> f64 {
        let mut late: Vec<f64> = self.late.iter().copied().collect();
        late.sort_unstable_by(f64::total_cmp);
        late.get(late.len() * 9 / 10).copied().unwrap_or(0.0)
    }

    /// Seconds of a step in which so many streams decode, as most of the last ones took.
    fn ordinary(&self, streams: f64) -> Option<f64> {
        // A stream more costs about what a prompt token does; the weights are read for one as well.
        let per_stream = self.prompt_token.unwrap_or(0.0);
        let seconds = |of: &Decode| {
            let more = (streams - of.streams) * per_stream;
            (of.seconds + more).max(of.seconds / 4.0)
        };
        let mut seconds: Vec<f64> = self.decode.iter().map(seconds).collect();
        let middle = seconds.len() / 2;
        let (_, median, _) = (!seconds.is_empty())
            .then(|| seconds.select_nth_unstable_by(middle, f64::total_cmp))?;
        Some(*median)
    }
}

/// Adds a measurement in place of the oldest of so many.
fn push<T>(recent: &mut VecDeque<T>, most: usize, new: T) {
    if recent.len() == most {
        recent.pop_front();
    }
    recent.push_back(new);
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
        for _ in 0..RECENT {
            pace.step_took(8, 0, 20 * MS);
            pace.step_took(8, 16, 36 * MS);
        }
        // One token takes 1 ms.
        assert!((13..=15).contains(&pace.prompt_tokens()), "{pace:?}");
        for _ in 0..2 * RECENT {
            pace.step_took(8, 0, 100 * MS);
        }
        assert!((49..=51).contains(&pace.prompt_tokens()), "{pace:?}");
        for _ in 0..RECENT {
            pace.step_took(8, 0, MS / 100);
        }
        assert_eq!(pace.prompt_tokens(), LEAST_TOKENS);
    }

    #[test]
    fn steps_that_come_late_leave_less_to_prompts() {
        let mut pace = StepPace::new(50 * MS);
        for i in 0..RECENT as u32 {
            // Every fifth is 8 ms late.
            let late = 8 * u32::from(i % 5 == 0);
            pace.step_took(8, 0, (20 + late) * MS);
            pace.step_took(8, 10, (30 + late) * MS);
        }
        let tokens = pace.prompt_tokens() as u32;
        assert!((5..=8).contains(&tokens), "{tokens} {pace:?}");
        assert!(
            20 + tokens + 8 <= 40,
            "late steps take no longer than two ordinary ones"
        );
        for _ in 0..RECENT {
            pace.step_took(8, 0, 20 * MS);
        }
        assert!(pace.prompt_tokens() as u32 > tokens + 1, "{pace:?}");
        // One that stands still for long does not keep prompts from going on.
        let before = pace.prompt_tokens();
        pace.step_took(8, 0, 900 * MS);
        assert_eq!(pace.prompt_tokens(), before);
    }

    #[test]
    fn streams_that_join_make_ordinary_steps_longer() {
        let mut pace = StepPace::new(50 * MS);
        for _ in 0..RECENT {
            pace.step_took(1, 0, 5 * MS);
        }
        // Prompts of many others: a token takes 1 ms, a stream more as well.
        for streams in 1..=26u32 {
            for _ in 0..8 {
                let tokens = pace.prompt_tokens();
                let took = (5 + streams - 1 + tokens as u32) * MS;
                pace.step_took(streams as usize, tokens, took);
            }
        }
        assert!((19..=22).contains(&pace.prompt_tokens()), "{pace:?}");
        pace.step_took(1, 3, 8 * MS);
        assert!((2..=6).contains(&pace.prompt_tokens()), "{pace:?}");
        pace.step_took(1, 0, 5 * MS);
        pace.step_took(1, 0, 5 * MS);
        pace.step_took(1, 0, 5 * MS);
        assert!((2..=4).contains(&pace.prompt_tokens()), "{pace:?}");
    }

    #[test]
    fn prompts_pause_now_and_then_so_that_longer_contexts_are_seen() {
        let mut pace = StepPace::new(50 * MS);
        let (mut tokens, mut pauses) = (0, 0);
        for step in 0..400 {
            // Decoding gets slower from 10 ms to 30; a token takes 1 ms.
            let decoding = 10 * MS + step * MS / 20;
            tokens = pace.prompt_tokens();
            pauses += usize::from(tokens == 0);
            pace.step_took(8, tokens, decoding + tokens as u32 * MS);
        }
        assert_eq!(pauses, 400 / LOOK);
        assert!(tokens == 0 || (16..=21).contains(&tokens), "{pace:?}");
    }

    #[test]
    fn a_first_token_that_costs_more_than_others_does_not_keep_them_out() {
        let mut pace = StepPace::new(50 * MS);
        pace.step_took(8, 0, 20 * MS);
        for _ in 0..100 {
            let tokens = pace.prompt_tokens();
            let first = 10 * u32::from(tokens > 0);
            pace.step_took(8, tokens, (20 + first) * MS + tokens as u32 * MS / 4);
        }
        let tokens = pace.prompt_tokens();
        assert!(tokens == 0 || (14..=17).contains(&tokens), "{pace:?}");
    }

    #[test]
    fn a_prompt_alone_is_only_a_first_guess() {
        let mut pace = StepPace::new(50 * MS);
        pace.step_took(0, 256, 256 * MS);
        assert_eq!(pace.prompt_tokens(), 25);
        for _ in 0..RECENT {
            pace.step_took(8, 0, 20 * MS);
            pace.step_took(8, 4, 26 * MS);
        }
        let among_few = pace.prompt_tokens();
        pace.step_took(0, 256, 128 * MS);
        assert_eq!(pace.prompt_tokens(), among_few);
    }
}
