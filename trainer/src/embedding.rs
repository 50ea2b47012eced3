//! What embeds the positions of a forward pass: tokens and f-grams, each distinct f-gram once.

use std::collections::HashMap;

/// How one position is embedded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// By the token embedding T.
    Token(u32),
    /// By the row of an f-gram.
    Fgram(&'a [u32]),
}

/// The embeddings of some positions, as indices into T followed by one row for each distinct
/// f-gram.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs<'a> {
    /// One entry a position: a token id, or `vocab_size + i` for `fgrams[i]`.
    pub index: Vec<u32>,
    /// The distinct f-grams, shorter first, then by ids.
    pub fgrams: Vec<&'a [u32]>,
}

impl<'a> Inputs<'a> {
    /// Collects `sources` of a model with `vocab_size` tokens.
    pub fn new(sources: impl Iterator<Item = Source<'a>>, vocab_size: u32) -> Self {
        let mut slots: HashMap<&[u32], u32> = HashMap::new();
        let mut fgrams: Vec<&[u32]> = Vec::new();
        let mut index: Vec<u32> = sources
            .map(|source| match source {
                Source::Token(id) => id,
                Source::Fgram(ids) => {
                    let slot = *slots.entry(ids).or_insert_with(|| {
                        fgrams.push(ids);
                        fgrams.len() as u32 - 1
                    });
                    vocab_size + slot
                }
            })
            .collect();
        let mut order: Vec<u32> = (0..fgrams.len() as u32).collect();
        order.sort_unstable_by_key(|&i| (fgrams[i as usize].len(), fgrams[i as usize]));
        let mut rank = vec![0; order.len()];
        for (at, &slot) in order.iter().enumerate() {
            rank[slot as usize] = at as u32;
        }
        for entry in &mut index {
            if *entry >= vocab_size {
                *entry = vocab_size + rank[(*entry - vocab_size) as usize];
            }
        }
        let fgrams = order.iter().map(|&slot| fgrams[slot as usize]).collect();
        Self { index, fgrams }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_fgrams_are_listed_once_in_order() {
        let sources = [
            Source::Fgram(&[7, 8, 9]),
            Source::Token(3),
            Source::Fgram(&[5, 6]),
            Source::Fgram(&[7, 8, 9]),
            Source::Fgram(&[4, 6]),
        ];
        let inputs = Inputs::new(sources.into_iter(), 10);
        assert_eq!(inputs.fgrams, [&[4, 6][..], &[5, 6], &[7, 8, 9]]);
        assert_eq!(inputs.index, [12, 3, 11, 12, 10]);
    }
}
