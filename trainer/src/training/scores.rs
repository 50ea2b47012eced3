//! Held-out text, scored by the network as it is.

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use super::checkpoint::State;
use super::config::TrainConfig;
use super::control::Control;
use super::prepare::Prepared;
use crate::evaluation::{Evaluator, LiveRows, NoRows, Options, RowSource, Totals};

/// Totals of each held-out text, by its name.
pub(super) fn scores(config: &TrainConfig, prepared: &Prepared) -> Result<Vec<(String, Totals)>> {
    let network = &prepared.network;
    let dim = prepared.model_config.hidden_size();
    let compute = |fgrams: &[&[u32]]| -> Result<Vec<f32>> {
        let rows = network
            .fgram_rows(fgrams)?
            .context("no f-grams to compute")?;
        Ok(rows.flatten_all()?.to_vec1()?)
    };
    let last_tokens = config.control.and_then(Control::last_tokens);
    let source: Box<dyn RowSource> = match (&prepared.fgrams, last_tokens) {
        (None, None) => Box::new(NoRows),
        (None, Some(most)) => Box::new(LastTokens { most, compute }),
        (Some(fgrams), _) => Box::new(LiveRows::new(fgrams.set.matcher(), dim, None, compute)),
    };
    let training = &config.training;
    let context = training.sequence_length;
    let options = Options {
        context,
        stride: context,
        batch_tokens: (training.batch_tokens / training.accumulate).max(context),
        eos: prepared.eos,
    };
    let mut evaluator = Evaluator::new(network.decoder(), source, options)?;
    let texts = prepared.held_out.iter();
    texts
        .map(|text| Ok((text.name.clone(), evaluator.run(text, |_| {})?)))
        .collect()
}

/// Rows of the last tokens of every position.
struct LastTokens<F> {
    most: u8,
    compute: F,
}

impl<F: FnMut(&[&[u32]]) -> Result<Vec<f32>>> RowSource for LastTokens<F> {
    fn tag(&mut self, document: &[u32]) -> Result<Vec<u8>> {
        let length = |end: usize| usize::from(self.most).min(end) as u8;
        Ok((1..=document.len()).map(length).collect())
    }

    fn rows(&mut self, fgrams: &[&[u32]]) -> Result<Vec<f32>> {
        (self.compute)(fgrams)
    }
}

/// The log entry of an evaluation, also told to people.
pub(super) fn evaluation_entry(
    config: &TrainConfig,
    state: &State,
    results: &[(String, Totals)],
    at_the_end: bool,
) -> Value {
    let mut all = Totals::default();
    let mut by_name = Map::new();
    for (name, totals) in results {
        all.add(totals);
        by_name.insert(name.clone(), json!(totals.nats_per_token()));
    }
    let step = state.step;
    tracing::info!(
        step,
        nats_per_token = format_args!("{:.4}", all.nats_per_token()),
        perplexity = format_args!("{:.2}", all.perplexity()),
        bits_per_byte = format_args!("{:.4}", all.bits_per_byte()),
        "held-out text"
    );
    let mut entry = json!({
        "step": step,
        "tokens": step * config.training.batch_tokens as u64,
        "seconds": state.seconds,
        "valid": by_name,
        "valid_nats_per_token": all.nats_per_token(),
        "valid_bits_per_byte": all.bits_per_byte(),
        "valid_matched": all.matched_share(),
    });
    if at_the_end {
        // The weights as they are in the files, which may be of an earlier step.
        let best = state.best.filter(|_| config.training.keeps_best());
        entry["model_of_step"] = json!(best.map_or(step, |best| best.step));
    }
    entry
}
