//! The flags that say how tokens are chosen.

use clap::Args;

use crate::request::{Draft, Prompt};

/// Tokens generated when `--max-tokens` is absent.
pub const DEFAULT_MAX_TOKENS: u32 = 128;

/// How tokens are chosen and when to stop. Absent flags mean the model's generation_config.json.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Most tokens to generate.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_TOKENS)]
    pub max_tokens: u32,

    /// 0 always takes the most probable token; higher is more varied. 0 to 100.
    #[arg(long, value_name = "X")]
    pub temperature: Option<f32>,

    /// Choose among the K most probable tokens; 0 is all.
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,

    /// Choose among the most probable tokens whose probabilities add up to this. Above 0, to 1.
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,

    /// Drop tokens less probable than this times the most probable one. 0 to below 1.
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,

    /// Makes tokens seen before less likely when above 1.
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f32>,

    /// Same seed, same text. Default: random, and shown in the summary.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// End the text before this string; may be given up to 16 times.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,

    /// Do not end at the model's end-of-text token.
    #[arg(long)]
    pub ignore_eos: bool,

    /// Name of the table whose rows are used, or none. Default: the default table.
    #[arg(long = "use", value_name = "NAME")]
    pub use_table: Option<String>,
}

impl SamplingArgs {
    /// A request for one text.
    pub fn draft(&self, prompt: Prompt, seed: u64) -> Draft {
        Draft {
            prompt: Some(prompt),
            max_tokens: Some(self.max_tokens),
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: Some(seed),
            stop: self.stop.clone(),
            ignore_eos: Some(self.ignore_eos),
            table: self.use_table.clone(),
            ..Draft::default()
        }
    }

    /// The seed asked for, or a short one at random.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| rand::random::<u32>().into())
    }
}
