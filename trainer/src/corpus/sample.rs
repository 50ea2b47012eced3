//! A part of a large corpus, such as a tokenizer is trained on.

use anyhow::{Result, bail, ensure};

use super::inputs::Input;
use super::options::Options;
use super::reader::{Content, Document, Documents};
use crate::progress::{Progress, Unit};

/// Text is sampled in pieces of at most this size, so that a corpus of few large books is still
/// sampled evenly; bytes.
const PIECE_BYTES: usize = 64 << 10;

/// An even, deterministic sample of a corpus: all of it, or pieces at a stride.
#[derive(Debug)]
pub struct Sample {
    inputs: Vec<Input>,
    options: Options,
    /// For every piece in order, whether it is taken.
    taken: Vec<bool>,
    text_bytes: u64,
    sample_bytes: u64,
}

impl Sample {
    /// Reads `inputs` once to see how much text they hold, and chooses at most `max_bytes` of it.
    ///
    /// # Errors
    /// When an input cannot be read, or `max_bytes` is smaller than every piece.
    pub fn new(inputs: Vec<Input>, options: &Options, max_bytes: u64) -> Result<Self> {
        let options = Options {
            max_document_bytes: PIECE_BYTES,
            ..options.clone()
        };
        let progress = Progress::new("measure", disk_bytes(&inputs), Unit::Bytes);
        let lengths: Vec<u64> = Documents::new(inputs.clone(), &options, &progress)
            .map(|piece| Ok(text_of(piece?)?.len() as u64))
            .collect::<Result<_>>()?;
        drop(progress);
        let text_bytes = lengths.iter().sum();
        ensure!(text_bytes > 0, "the input holds no text");
        let (taken, sample_bytes) = choose(&lengths, text_bytes, max_bytes);
        ensure!(
            sample_bytes > 0,
            "--max-bytes {max_bytes} is less than every piece of the text"
        );
        Ok(Self {
            inputs,
            options,
            taken,
            text_bytes,
            sample_bytes,
        })
    }

    /// Text in the corpus, bytes.
    pub fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    /// Text in the sample, bytes.
    pub fn sample_bytes(&self) -> u64 {
        self.sample_bytes
    }

    /// Size of the inputs on disk, bytes: what the progress of [`documents`](Self::documents) counts.
    pub fn disk_bytes(&self) -> u64 {
        disk_bytes(&self.inputs)
    }

    /// Reads the sample.
    pub fn documents<'a>(
        &'a self,
        progress: &'a Progress,
    ) -> impl Iterator<Item = Result<String>> + Send + 'a {
        let pieces = Documents::new(self.inputs.clone(), &self.options, progress)
            .map(|piece| piece.and_then(text_of));
        // A corpus that grew since it was measured does not matter; an error behind the end does.
        let taken = self.taken.iter().copied().chain(std::iter::repeat(false));
        pieces
            .zip(taken)
            .filter(|(piece, taken)| *taken || piece.is_err())
            .map(|(piece, _)| piece)
    }
}

fn text_of(piece: Document) -> Result<String> {
    match piece.content {
        Content::Text(text) => Ok(text),
        Content::Ids { .. } => bail!("a tokenizer is trained on text, and here are token ids"),
    }
}

fn disk_bytes(inputs: &[Input]) -> u64 {
    inputs.iter().map(|input| input.bytes).sum()
}

/// Takes a piece whenever what was taken lags behind the share that is due, and never more.
fn choose(lengths: &[u64], text_bytes: u64, max_bytes: u64) -> (Vec<bool>, u64) {
    let (mut seen, mut sum) = (0u64, 0u64);
    let share =
        |seen: u64| (u128::from(seen) * u128::from(max_bytes) / u128::from(text_bytes)) as u64;
    let taken = lengths
        .iter()
        .map(|&length| {
            seen += length;
            let take = text_bytes <= max_bytes || sum + length <= share(seen);
            sum += if take { length } else { 0 };
            take
        })
        .collect();
    (taken, sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_everything_that_fits() {
        assert_eq!(choose(&[5, 1, 4], 10, 10), (vec![true; 3], 10));
    }

    #[test]
    fn takes_an_even_stride_of_what_does_not_fit() {
        let (taken, sum) = choose(&[10; 12], 120, 40);
        assert_eq!(sum, 40);
        let indices: Vec<usize> = (0..12).filter(|&i| taken[i]).collect();
        assert_eq!(indices, [2, 5, 8, 11]);
    }

    #[test]
    fn never_takes_more_than_the_limit() {
        let lengths: Vec<u64> = (0..500).map(|i| 1 + (i * 7919) % 97).collect();
        let total = lengths.iter().sum();
        for max in [1, 50, 1000, total - 1] {
            let (_, sum) = choose(&lengths, total, max);
            assert!(sum <= max && sum + 97 * 2 >= max, "{sum} of {max}");
        }
    }
}
