//! Sampling parameters and their limits.

use crate::error::{Error, Result};

/// How to choose tokens. Names, limits and defaults are those of `SamplingParameters` in
/// `scone/decoder/v1/decoder.proto` (and of the OpenAI API and vLLM).
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; from 0 to 100.
    pub temperature: f32,
    /// Sample among the k most probable tokens; 0 is all.
    pub top_k: u32,
    /// Sample among the most probable tokens whose probabilities add up to this; in (0, 1].
    pub top_p: f32,
    /// Drop tokens less probable than this times the most probable one; in [0, 1).
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; from
    /// 0.01 to 100.
    pub repetition_penalty: f32,
    /// Taken off the logit of every token seen in the output; from -2 to 2.
    pub presence_penalty: f32,
    /// Taken off the logit of a token once for each time it was output; from -2 to 2.
    pub frequency_penalty: f32,
    /// Report log probabilities, and this many of the most probable tokens; 0 to 20.
    pub logprobs: Option<u32>,
    /// Added to the logits of these token ids, each from -100 to 100; at most 1024.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logprobs: None,
            logit_bias: Vec::new(),
        }
    }
}

/// Most log probabilities of a token that can be asked for.
pub const MAX_LOGPROBS: u32 = 20;
const MAX_BIASES: usize = 1024;

impl SamplingParams {
    /// Checks every limit.
    ///
    /// # Errors
    /// [`Error::Sampling`] naming the first field out of its limits, and the limit.
    pub fn validate(&self, vocab_size: usize) -> Result<()> {
        let within = |field, value: f32, inside: bool, limit: &str| {
            if inside {
                return Ok(());
            }
            Err(Error::Sampling {
                field,
                reason: format!("must be {limit}, got {value}"),
            })
        };
        // A comparison with NaN is false, so NaN is outside of every range.
        let between = |value: f32, low: f32, high: f32| value >= low && value <= high;
        let t = self.temperature;
        within("temperature", t, between(t, 0.0, 100.0), "from 0 to 100")?;
        let inside = self.top_p > 0.0 && self.top_p <= 1.0;
        within("top_p", self.top_p, inside, "above 0 and at most 1")?;
        let inside = self.min_p >= 0.0 && self.min_p < 1.0;
        within("min_p", self.min_p, inside, "at least 0 and below 1")?;
        let r = self.repetition_penalty;
        within(
            "repetition_penalty",
            r,
            between(r, 0.01, 100.0),
            "from 0.01 to 100",
        )?;
        let p = self.presence_penalty;
        within("presence_penalty", p, between(p, -2.0, 2.0), "from -2 to 2")?;
        let f = self.frequency_penalty;
        within(
            "frequency_penalty",
            f,
            between(f, -2.0, 2.0),
            "from -2 to 2",
        )?;
        if let Some(n) = self.logprobs.filter(|&n| n > MAX_LOGPROBS) {
            return Err(Error::Sampling {
                field: "logprobs",
                reason: format!("must be at most {MAX_LOGPROBS}, got {n}"),
            });
        }
        self.validate_biases(vocab_size)
    }

    fn validate_biases(&self, vocab_size: usize) -> Result<()> {
        let wrong = |reason| {
            Err(Error::Sampling {
                field: "logit_bias",
                reason,
            })
        };
        if self.logit_bias.len() > MAX_BIASES {
            let n = self.logit_bias.len();
            return wrong(format!("must have at most {MAX_BIASES} entries, got {n}"));
        }
        for &(id, bias) in &self.logit_bias {
            if id as usize >= vocab_size {
                return wrong(format!("has the id {id}; ids are below {vocab_size}"));
            }
            if !(-100.0..=100.0).contains(&bias) {
                return wrong(format!("must be from -100 to 100, got {bias} for id {id}"));
            }
        }
        Ok(())
    }

    /// Whether the tokens seen so far matter.
    pub(super) fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}
