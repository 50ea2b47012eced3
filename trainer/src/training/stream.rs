//! The training stream: documents in a seeded order joined by eos, each position tagged with the
//! length of its longest f-gram, cut into windows.
//!
//! Everything is a pure function of the corpus, the seed and the step, so a resumed run needs only
//! the step number.

use anyhow::{Result, ensure};
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha12Rng;
use rayon::prelude::*;
use scone_fgram::matcher::Matcher;
use sha2::{Digest as _, Sha256};

/// All training tokens with their tags.
#[derive(Debug)]
pub struct TokenStream {
    /// eos, document, eos, document, …
    ids: Vec<u32>,
    /// Length of the longest f-gram ending at each position; 0: none.
    lengths: Vec<u8>,
}

/// What a position is embedded by.
#[derive(Debug)]
pub enum Tags<'a> {
    /// Its token.
    None,
    /// The longest f-gram that ends there.
    Fgrams(&'a Matcher),
    /// As many tokens as these, or as its document has up to there.
    LastTokens(u8),
}

/// Which random order is drawn; each has its own generator.
#[derive(Clone, Copy)]
enum Order {
    Documents,
    Windows(u64),
}

fn generator(seed: u64, order: Order) -> ChaCha12Rng {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    rng.set_stream(match order {
        Order::Documents => 0,
        Order::Windows(epoch) => epoch + 1,
    });
    rng
}

impl TokenStream {
    /// Joins `count` documents in an order drawn from `seed`; `read` appends the ids of one. Each
    /// document is tagged as a whole before windows are cut, so no tag depends on a window.
    pub fn new(
        count: usize,
        read: impl Fn(usize, &mut Vec<u32>),
        eos: u32,
        tags: &Tags<'_>,
        seed: u64,
    ) -> Self {
        let mut order: Vec<usize> = (0..count).collect();
        order.shuffle(&mut generator(seed, Order::Documents));
        let mut ids = Vec::new();
        let mut starts = Vec::with_capacity(count);
        for document in order {
            starts.push(ids.len());
            ids.push(eos);
            read(document, &mut ids);
        }
        let mut lengths = vec![0; ids.len()];
        match tags {
            Tags::None => {}
            Tags::Fgrams(matcher) => tag_documents(&ids, &starts, matcher, &mut lengths),
            Tags::LastTokens(most) => tag_last(&starts, *most, &mut lengths),
        }
        Self { ids, lengths }
    }

    /// [`TokenStream::new`] of documents at hand.
    pub fn from_documents(
        documents: &[&[u32]],
        eos: u32,
        matcher: Option<&Matcher>,
        seed: u64,
    ) -> Self {
        let read = |at: usize, out: &mut Vec<u32>| out.extend_from_slice(documents[at]);
        let tags = matcher.map_or(Tags::None, Tags::Fgrams);
        Self::new(documents.len(), read, eos, &tags, seed)
    }

    /// SHA-256, in hexadecimal, over the ids in stream order.
    pub fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        let mut bytes = Vec::new();
        for chunk in self.ids.chunks(1 << 16) {
            bytes.clear();
            bytes.extend(chunk.iter().flat_map(|id| id.to_le_bytes()));
            hasher.update(&bytes);
        }
        scone_files::hex(&hasher.finalize())
    }

    /// Tokens of the stream, eos included.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no text at all.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Share of positions that match an f-gram.
    pub fn matched_share(&self) -> f64 {
        let matched = self.lengths.iter().filter(|&&n| n > 0).count();
        matched as f64 / self.len().max(1) as f64
    }

    /// The token ids in stream order.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The f-gram that position `at` of the stream uses. It may start before the window that
    /// `at` is in, but never before its document.
    pub fn fgram(&self, at: usize) -> Option<&[u32]> {
        match self.lengths[at] {
            0 => None,
            length => Some(&self.ids[at + 1 - usize::from(length)..=at]),
        }
    }
}

/// Tags every position but the eos that documents begin with.
fn tag_last(starts: &[usize], most: u8, lengths: &mut [u8]) {
    for (at, &start) in starts.iter().enumerate() {
        let end = starts.get(at + 1).copied().unwrap_or(lengths.len());
        for (i, length) in lengths[start..end].iter_mut().enumerate() {
            *length = most.min(i.min(usize::from(u8::MAX)) as u8);
        }
    }
}

/// Fills in the match lengths of documents that begin, with their eos, at `starts`.
fn tag_documents(ids: &[u32], starts: &[usize], matcher: &Matcher, lengths: &mut [u8]) {
    let mut documents = Vec::with_capacity(starts.len());
    let mut rest = lengths;
    for (at, &start) in starts.iter().enumerate() {
        let end = starts.get(at + 1).copied().unwrap_or(ids.len());
        let (own, after) = rest.split_at_mut(end - start);
        documents.push((&ids[start + 1..end], &mut own[1..]));
        rest = after;
    }
    documents
        .par_iter_mut()
        .with_max_len(1)
        .for_each(|(ids, lengths)| {
            let mut matches = Vec::with_capacity(ids.len());
            matcher.tag(ids, 0, &mut matches);
            for (length, found) in lengths.iter_mut().zip(&matches) {
                *length = found.map_or(0, |found| found.len);
            }
        });
}

/// Which windows each step trains on. A window is `length` inputs and the `length` tokens after
/// each of them; windows do not overlap in their inputs. Each epoch has its own global order.
#[derive(Debug)]
pub struct WindowOrder {
    seed: u64,
    length: usize,
    per_step: usize,
    windows: usize,
    epoch: u64,
    order: Vec<u32>,
}

impl WindowOrder {
    /// Windows of `length` inputs over a stream of `tokens`, `per_step` of them a step.
    ///
    /// # Errors
    /// When the stream is shorter than one step.
    pub fn new(tokens: usize, length: usize, per_step: usize, seed: u64) -> Result<Self> {
        let windows = tokens.saturating_sub(1) / length;
        ensure!(
            windows >= per_step,
            "the training corpus has {tokens} tokens, less than one batch: training.batch_tokens = \
             {} needs at least {}; add text or lower training.batch_tokens",
            per_step * length,
            per_step * length + 1
        );
        ensure!(
            u32::try_from(windows).is_ok(),
            "corpus of {tokens} tokens has too many windows"
        );
        let order = shuffled(windows, seed, 0);
        Ok(Self {
            seed,
            length,
            per_step,
            windows,
            epoch: 0,
            order,
        })
    }

    /// Windows of one epoch.
    pub fn windows(&self) -> usize {
        self.windows
    }

    /// Where in the stream the windows of the 0-based `step` start. An epoch may end within a
    /// step.
    pub fn starts(&mut self, step: u64) -> Vec<usize> {
        let first = step * self.per_step as u64;
        let all = first..first + self.per_step as u64;
        all.map(|index| self.start(index)).collect()
    }

    fn start(&mut self, index: u64) -> usize {
        let windows = self.windows as u64;
        let epoch = index / windows;
        if epoch != self.epoch {
            self.order = shuffled(self.windows, self.seed, epoch);
            self.epoch = epoch;
        }
        self.order[(index % windows) as usize] as usize * self.length
    }
}

fn shuffled(windows: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..windows as u32).collect();
    order.shuffle(&mut generator(seed, Order::Windows(epoch)));
    order
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const EOS: u32 = 0;

    fn matcher() -> Matcher {
        let keys: [&[u32]; 3] = [&[1, 2], &[2, 3], &[1, 2, 3]];
        Matcher::build(keys.into_iter(), 3).unwrap()
    }

    #[test]
    fn fgrams_reach_back_to_the_document_start_and_no_further() {
        let documents: [&[u32]; 2] = [&[1, 2, 3], &[3, 1, 2]];
        let stream = TokenStream::from_documents(&documents, EOS, Some(&matcher()), 1);
        assert_eq!(stream.len(), 8);
        for at in 0..stream.len() {
            if let Some(fgram) = stream.fgram(at) {
                assert!(!fgram.contains(&EOS));
            }
        }
        let three = stream
            .ids()
            .windows(4)
            .position(|w| w == [EOS, 1, 2, 3])
            .unwrap()
            + 3;
        assert_eq!(stream.fgram(three).unwrap(), [1, 2, 3]);
        assert_eq!(stream.fgram(three - 1).unwrap(), [1, 2]);
        assert_eq!(stream.fgram(three - 2), None);
        assert!((stream.matched_share() - 3.0 / 8.0).abs() < 1e-9);
    }

    #[test]
    fn last_tokens_reach_back_to_the_document_start_and_no_further() {
        let documents: [&[u32]; 2] = [&[1, 2, 3], &[4]];
        let read = |at: usize, out: &mut Vec<u32>| out.extend_from_slice(documents[at]);
        let stream = TokenStream::new(2, read, EOS, &Tags::LastTokens(2), 1);
        let fgrams: Vec<_> = (0..stream.len()).map(|at| stream.fgram(at)).collect();
        let first = [None, Some(&[1][..]), Some(&[1, 2]), Some(&[2, 3])];
        let second = [None, Some(&[4][..])];
        assert!(
            fgrams == [&first[..], &second].concat() || fgrams == [&second[..], &first].concat()
        );
    }

    #[test]
    fn an_epoch_visits_every_window_once_and_steps_are_pure() {
        let mut order = WindowOrder::new(101, 10, 3, 5).unwrap();
        assert_eq!(order.windows(), 10);
        let seen: Vec<usize> = (0..10).flat_map(|step| order.starts(step)).collect();
        for epoch in seen.chunks(10) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).map(|w| w * 10).collect::<Vec<_>>());
        }
        assert_ne!(seen[..10], seen[10..20]);
        let mut fresh = WindowOrder::new(101, 10, 3, 5).unwrap();
        assert_eq!(fresh.starts(7), seen[21..24]);
        assert_eq!(fresh.starts(0), seen[..3]);
    }

    #[test]
    fn a_corpus_below_one_batch_is_refused() {
        let text = WindowOrder::new(30, 10, 3, 5).unwrap_err().to_string();
        assert!(
            text.contains("30 tokens") && text.contains("training.batch_tokens = 30"),
            "{text}"
        );
        assert!(WindowOrder::new(0, 10, 1, 5).is_err());
    }
}
