//! What an evaluation adds up.

use serde::Serialize;

/// Sums over scored tokens; sums of two pieces of text add up.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Tokens scored.
    pub tokens: u64,
    /// UTF-8 bytes of them.
    pub bytes: u64,
    /// Words of them, separated by white space.
    pub words: u64,
    /// Sum of their negative log-probabilities, nats.
    pub nats: f64,
    /// Tokens scored, by the match length of the token itself; entry 0: no f-gram ends there.
    pub by_match_length: Vec<u64>,
}

impl Totals {
    /// Nats a token.
    pub fn nats_per_token(&self) -> f64 {
        self.nats / self.tokens.max(1) as f64
    }

    /// Exponential of the nats a token.
    pub fn perplexity(&self) -> f64 {
        self.nats_per_token().exp()
    }

    /// Bits for each byte of the UTF-8 text.
    pub fn bits_per_byte(&self) -> f64 {
        self.nats / std::f64::consts::LN_2 / self.bytes.max(1) as f64
    }

    /// Perplexity a word, as language models with a vocabulary of words report it: the nats of all tokens,
    /// the spaces and line ends between words included, over the words alone.
    pub fn word_perplexity(&self) -> f64 {
        (self.nats / self.words.max(1) as f64).exp()
    }

    /// Share of tokens at which an f-gram ends.
    pub fn matched_share(&self) -> f64 {
        let matched: u64 = self.by_match_length.iter().skip(1).sum();
        matched as f64 / self.tokens.max(1) as f64
    }

    /// Counts tokens by match length.
    pub(super) fn count(&mut self, lengths: &[u8]) {
        self.tokens += lengths.len() as u64;
        for &length in lengths {
            let at = usize::from(length);
            if self.by_match_length.len() <= at {
                self.by_match_length.resize(at + 1, 0);
            }
            self.by_match_length[at] += 1;
        }
    }

    /// Adds the sums of `other`.
    pub fn add(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.bytes += other.bytes;
        self.words += other.words;
        self.nats += other.nats;
        let longest = self.by_match_length.len().max(other.by_match_length.len());
        self.by_match_length.resize(longest, 0);
        for (own, more) in self.by_match_length.iter_mut().zip(&other.by_match_length) {
            *own += more;
        }
    }
}
