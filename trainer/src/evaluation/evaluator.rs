//! Scoring the windows of a text, batch by batch.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use candle_core::Tensor;
use scone_model::Decoder;

use super::held_out::{Document, HeldOut};
use super::row_cache::RowCache;
use super::rows::RowSource;
use super::totals::Totals;
use super::windows::{Window, windows};
use crate::embedding::{Inputs, Source};

/// How text is cut and how much of it is read.
#[derive(Debug, Clone)]
pub struct Options {
    /// Most input positions of a window; at most the model's.
    pub context: usize,
    /// How far a window slides; 1 to `context`.
    pub stride: usize,
    /// Positions of one forward pass.
    pub batch_tokens: usize,
    /// The token before the first one.
    pub eos: u32,
}

/// Evaluates one model; keeps the rows it has seen.
pub struct Evaluator<'a> {
    decoder: &'a Decoder,
    source: Box<dyn RowSource + 'a>,
    options: Options,
    cache: RowCache,
}

impl std::fmt::Debug for Evaluator<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Evaluator")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl<'a> Evaluator<'a> {
    /// An evaluator of `decoder` with rows of `source`.
    ///
    /// # Errors
    /// When an option is out of range.
    pub fn new(
        decoder: &'a Decoder,
        source: Box<dyn RowSource + 'a>,
        options: Options,
    ) -> Result<Self> {
        let limit = decoder.shape().max_positions;
        ensure!(
            (1..=limit).contains(&options.context),
            "context = {} is not 1 to the model's {limit} positions",
            options.context
        );
        ensure!(
            (1..=options.context).contains(&options.stride),
            "stride = {} is not 1 to the context, {}",
            options.stride,
            options.context
        );
        let cache = RowCache::new(
            decoder.shape().hidden_size,
            decoder.token_embedding().device(),
        );
        Ok(Self {
            decoder,
            source,
            options,
            cache,
        })
    }

    /// Scores the pieces of `text`; `progress` is told the tokens of each forward pass.
    ///
    /// # Errors
    /// When rows cannot be had, ids are out of vocabulary, or the loss is not finite.
    pub fn run(&mut self, text: &HeldOut, mut progress: impl FnMut(u64)) -> Result<Totals> {
        let mut totals = Totals {
            bytes: text.bytes,
            words: text.words,
            ..Totals::default()
        };
        let HeldOut {
            documents, pieces, ..
        } = text;
        let mut tagged = HashMap::new();
        let mut all: Vec<Window> = Vec::new();
        for piece in pieces {
            let ids = &documents[piece.document].ids;
            let lengths = self.source.tag(ids)?;
            ensure!(
                lengths.len() == ids.len(),
                "a match length for each position is missing"
            );
            totals.count(&lengths[piece.range.clone()]);
            tagged.insert(piece.document, lengths);
            all.extend(windows(piece, self.options.context, self.options.stride));
        }
        // Windows of like length together, so that little is padded; the order is a function of
        // the text alone, so that runs with other rows see the same batches.
        all.sort_by_key(|w| (w.inputs.len(), w.document, w.inputs.start));
        for batch in batches(&all, self.options.batch_tokens) {
            totals.nats += self.score(documents, &tagged, batch)?;
            progress(batch.iter().map(|w| w.scored as u64).sum());
        }
        Ok(totals)
    }

    /// Nats of the scored tokens of some windows, padded at the right to the longest.
    fn score(
        &mut self,
        documents: &[Document],
        tagged: &HashMap<usize, Vec<u8>>,
        batch: &[Window],
    ) -> Result<f64> {
        let longest = batch.iter().map(|w| w.inputs.len()).max().unwrap_or(0);
        let (mut sources, mut picked, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        for (row, window) in batch.iter().enumerate() {
            let ids = &documents[window.document].ids;
            let lengths = &tagged[&window.document];
            sources.extend(
                window
                    .inputs
                    .clone()
                    .map(|at| self.source_at(ids, lengths, at)),
            );
            let padding = longest - window.inputs.len();
            sources.extend(std::iter::repeat_n(
                Source::Token(self.options.eos),
                padding,
            ));
            let first = window.inputs.len() - window.scored;
            picked.extend((first..window.inputs.len()).map(|at| (row * longest + at) as u32));
            targets.extend_from_slice(&ids[window.inputs.end - window.scored..window.inputs.end]);
        }
        let inputs = Inputs::new(sources.into_iter(), self.decoder.shape().vocab_size as u32);
        let rows = self.cache.rows(&inputs.fgrams, self.source.as_mut())?;
        let embeds = self
            .decoder
            .input_embeddings(rows.as_ref(), &inputs.index)?;
        let embeds = embeds.reshape((batch.len(), longest, embeds.dim(1)?))?;
        let hidden = self.decoder.forward(&embeds.detach())?.flatten_to(1)?;
        let count = picked.len();
        let hidden = hidden.index_select(&Tensor::from_vec(picked, count, hidden.device())?, 0)?;
        // Not the training loss, which computes gradients of weights that are trained.
        let losses = self.decoder.token_losses(&hidden.detach(), &targets)?;
        let nats: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
        ensure!(
            nats.is_finite(),
            "the loss on held-out text is not finite ({nats})"
        );
        Ok(nats)
    }

    /// What embeds input position `at` of eos followed by the document.
    fn source_at<'d>(&self, ids: &'d [u32], lengths: &[u8], at: usize) -> Source<'d> {
        let Some(last) = at.checked_sub(1) else {
            return Source::Token(self.options.eos);
        };
        match usize::from(lengths[last]) {
            0 => Source::Token(ids[last]),
            n => Source::Fgram(&ids[last + 1 - n..=last]),
        }
    }
}

/// Runs of windows of at most `batch_tokens` positions, padding included; at least one window.
fn batches(sorted: &[Window], batch_tokens: usize) -> Vec<&[Window]> {
    let mut found = Vec::new();
    let mut start = 0;
    for end in 1..=sorted.len() {
        let full = sorted
            .get(end)
            .is_none_or(|next| (end + 1 - start) * next.inputs.len() > batch_tokens);
        if full {
            found.push(&sorted[start..end]);
            start = end;
        }
    }
    found
}
