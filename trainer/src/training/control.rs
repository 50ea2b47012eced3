//! Rows that A is compared with: trained as they are, with no model behind them.

use anyhow::{Context as _, Result};
use candle_core::Tensor;
use scone_fgram::matcher::Matcher;
use scone_fgram::set::FgramSet;
use scone_model::{Decoder, Parameters};

use super::config::ControlKind;

/// The name of the rows among the parameters.
const ROWS: &str = "rows";

/// A control arm: how f-grams, or the last tokens of a position, find their rows.
#[derive(Debug)]
pub(super) struct Control {
    kind: ControlKind,
    /// Of `direct`.
    matcher: Option<Matcher>,
}

impl Control {
    /// What a position is embedded by beside the f-grams of a set: the last so many tokens.
    pub(super) fn last_tokens(kind: ControlKind) -> Option<u8> {
        match kind {
            ControlKind::Direct => None,
            ControlKind::Unigram => Some(1),
            ControlKind::Bigram { .. } => Some(2),
        }
    }

    /// The control and its first rows. Those of f-grams are the token embedding `(V, D)` of their last
    /// tokens; those that are added to it are zeros.
    ///
    /// # Errors
    /// `direct` without a set.
    pub(super) fn new(
        kind: ControlKind,
        set: Option<&FgramSet>,
        token_embedding: &Tensor,
    ) -> Result<(Self, Parameters)> {
        let (vocab, width) = token_embedding.dims2()?;
        let zeros = |rows| {
            Tensor::zeros(
                (rows, width),
                token_embedding.dtype(),
                token_embedding.device(),
            )
        };
        let mut matcher = None;
        let rows = match kind {
            ControlKind::Direct => {
                let set = set.context("control direct without fgrams")?;
                matcher = Some(set.matcher());
                let last =
                    (0..set.len()).map(|rank| set.get(rank).ids.last().copied().unwrap_or(0));
                let last: Vec<u32> = last.collect();
                let count = last.len();
                let last = Tensor::from_vec(last, count, token_embedding.device())?;
                token_embedding.index_select(&last, 0)?
            }
            ControlKind::Unigram => zeros(vocab)?,
            ControlKind::Bigram { rows } => zeros(rows)?,
        };
        let parameters = Parameters::from([(ROWS.to_owned(), rows)]);
        Ok((Self { kind, matcher }, parameters))
    }

    /// Inputs of f-grams, or of last tokens, `(F, D)`: their rows, or the token embedding and their rows.
    ///
    /// # Errors
    /// An f-gram that is not in the set.
    pub(super) fn rows(
        &self,
        decoder: &Decoder,
        parameters: &Parameters,
        fgrams: &[&[u32]],
    ) -> Result<Tensor> {
        let rows = parameters.get(ROWS).context("no rows")?;
        let vocab = decoder.shape().vocab_size as u32;
        let index = fgrams.iter().map(|ids| Ok(vocab + self.row(ids)?));
        let index = index.collect::<Result<Vec<u32>>>()?;
        let own = decoder.input_embeddings(Some(rows), &index)?;
        if self.matcher.is_some() {
            return Ok(own);
        }
        let last: Vec<u32> = fgrams
            .iter()
            .filter_map(|ids| ids.last().copied())
            .collect();
        Ok((decoder.input_embeddings(None, &last)? + own)?)
    }

    fn row(&self, ids: &[u32]) -> Result<u32> {
        match (self.kind, &self.matcher) {
            (ControlKind::Bigram { rows }, _) => Ok(bucket(ids, rows)),
            (ControlKind::Unigram, _) => ids.first().copied().context("no token"),
            (ControlKind::Direct, matcher) => matcher
                .as_ref()
                .and_then(|matcher| matcher.row(ids))
                .context("an f-gram that is not in the set"),
        }
    }
}

/// Where tokens are hashed to, by FNV-1a over their bytes.
fn bucket(ids: &[u32], rows: usize) -> u32 {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The high bits of such a hash are the better mixed ones.
    ((hash >> 32) % rows.max(1) as u64) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_even_and_in_range() {
        let mut counts = vec![0; 64];
        for a in 0..64 {
            for b in 0..64 {
                counts[bucket(&[a, b], 64) as usize] += 1;
            }
        }
        assert!(counts.iter().all(|n| (30..110).contains(n)), "{counts:?}");
        assert_eq!(bucket(&[7], 1), 0);
    }
}
