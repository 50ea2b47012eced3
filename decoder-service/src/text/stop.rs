//! Finds stop strings in text that arrives in pieces.

use std::sync::Arc;

/// A stop string was found; the text before it has been passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Index of the stop string in the request.
    pub index: usize,
}

/// Passes text on up to the first stop string.
///
/// The first is the one that is complete first; of several complete at the same character, the
/// longest. So the answer does not depend on how the text was cut into pieces. The matcher holds
/// back the longest end of the text that begins a stop string: at most 255 bytes under the limits
/// of a request.
#[derive(Debug)]
pub struct StopMatcher {
    stops: Arc<[String]>,
    /// Not passed on yet; a proper beginning of some stop string.
    held: String,
}

impl StopMatcher {
    /// Looks for `stops`, none of them empty.
    pub fn new(stops: Arc<[String]>) -> Self {
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Adds `text` and appends to `out` what cannot be part of a stop string any more. After a stop
    /// string was found the matcher is empty.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<Stopped> {
        if self.stops.is_empty() {
            out.push_str(text);
            return None;
        }
        self.held.push_str(text);
        if let Some((start, index)) = self.first_complete() {
            out.push_str(&self.held[..start]);
            self.held.clear();
            return Some(Stopped { index });
        }
        let keep = self.undecided();
        out.push_str(&self.held[..keep]);
        self.held.drain(..keep);
        None
    }

    /// No more text will come: passes on what was held back.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    /// Start and number of the stop string that is complete first.
    fn first_complete(&self) -> Option<(usize, usize)> {
        self.stops
            .iter()
            .enumerate()
            .filter_map(|(index, stop)| {
                let start = self.held.find(stop.as_str())?;
                Some((start + stop.len(), start, index))
            })
            .min()
            .map(|(_, start, index)| (start, index))
    }

    /// Where the longest end of `held` starts that is the beginning of a stop string.
    fn undecided(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        (from..self.held.len())
            .filter(|&at| self.held.is_char_boundary(at))
            .find(|&at| {
                let end = &self.held[at..];
                self.stops.iter().any(|stop| stop.starts_with(end))
            })
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn stops(list: &[&str]) -> Arc<[String]> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    fn run(list: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(stops(list));
        let mut out = String::new();
        for piece in pieces {
            if let Some(stopped) = matcher.push(piece, &mut out) {
                return (out, Some(stopped.index));
            }
        }
        matcher.finish(&mut out);
        (out, None)
    }

    #[test]
    fn cuts_before_a_stop_string_in_one_piece() {
        assert_eq!(run(&["END"], &["to be END or"]), ("to be ".into(), Some(0)));
    }

    #[test]
    fn finds_a_stop_string_spread_over_pieces() {
        assert_eq!(run(&["\n\n"], &["a\n", "\nb"]), ("a".into(), Some(0)));
        assert_eq!(
            run(&["stop here"], &["x st", "op", " he", "re y"]),
            ("x ".into(), Some(0))
        );
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop_string() {
        let mut matcher = StopMatcher::new(stops(&["abc"]));
        let mut out = String::new();
        assert_eq!(matcher.push("xxab", &mut out), None);
        assert_eq!(out, "xx");
        assert_eq!(matcher.push("ab", &mut out), None);
        assert_eq!(out, "xxab", "the first ab is no beginning any more");
        matcher.finish(&mut out);
        assert_eq!(out, "xxabab");
    }

    #[test]
    fn multi_byte_characters_may_stand_anywhere() {
        assert_eq!(run(&["é!"], &["né", "é", "!"]), ("né".into(), Some(0)));
        assert_eq!(run(&["日本"], &["日", "日", "本"]), ("日".into(), Some(0)));
    }

    #[test]
    fn the_first_to_be_complete_wins() {
        assert_eq!(run(&["abcd", "bc"], &["abcd"]), ("a".into(), Some(1)));
        assert_eq!(run(&["bc", "abc"], &["abc"]), (String::new(), Some(1)));
    }

    /// All ways to cut short texts over two letters against a search in the whole text.
    #[test]
    fn the_cut_into_pieces_does_not_matter() {
        let sets: [&[&str]; 4] = [&["ab"], &["aab", "ba"], &["bbb", "ab", "abab"], &["a"]];
        for list in sets {
            for text in 0u32..1 << 8 {
                let text: String = (0..8)
                    .map(|i| if text >> i & 1 == 1 { 'a' } else { 'b' })
                    .collect();
                let whole = run(list, &[&text]);
                for cuts in 0u32..1 << 7 {
                    let mut pieces = vec![String::new()];
                    for (i, c) in text.chars().enumerate() {
                        pieces.last_mut().unwrap().push(c);
                        if i < 7 && cuts >> i & 1 == 1 {
                            pieces.push(String::new());
                        }
                    }
                    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                    assert_eq!(run(list, &pieces), whole, "{list:?} in {pieces:?}");
                }
            }
        }
    }
}
