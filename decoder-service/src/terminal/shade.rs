//! Tokens shaded by the length of the f-gram whose row was their input.

use std::collections::BTreeSet;

use crate::sequence::Delta;

/// Backgrounds for lengths 2, 3, 4, 5 and more, from pale to strong, of a terminal's 256 colours.
const BACKGROUNDS: [u8; 5] = [194, 157, 120, 83, 40];

/// Black on a background; the shades are light on terminals of either kind.
fn paint(text: &str, length: u8) -> String {
    let Some(shade) = usize::from(length).checked_sub(2) else {
        return text.to_owned();
    };
    let background = BACKGROUNDS[shade.min(BACKGROUNDS.len() - 1)];
    // A background that runs to the next line would fill it.
    let lines: Vec<String> = text
        .split('\n')
        .map(|line| match line {
            "" => String::new(),
            line => format!("\x1b[38;5;16;48;5;{background}m{line}\x1b[0m"),
        })
        .collect();
    lines.join("\n")
}

/// Shades text as it comes.
#[derive(Debug, Default)]
pub(super) struct Shade {
    /// Match length of the last token.
    length: u8,
    seen: BTreeSet<u8>,
}

impl Shade {
    /// The new text, shaded. Text that waited for later tokens (a character in parts, the beginning
    /// of a stop string) has the shade of the last of them.
    pub(super) fn text(&mut self, delta: &Delta) -> String {
        // Without a token it is the prompt, or what was held back of the last token.
        if let Some(token) = delta.tokens.last() {
            self.length = token.match_length;
            self.seen.insert(token.match_length);
        }
        paint(&delta.text, self.length)
    }

    /// What the shades mean, of the lengths that occurred.
    pub(super) fn legend(&self) -> String {
        let lengths = self.seen.iter().filter(|&&length| length >= 2);
        let painted = lengths.map(|&length| paint(&format!(" {length} "), length));
        let painted: Vec<String> = painted.collect();
        match painted.is_empty() {
            true => "[no f-gram matched]".to_owned(),
            false => format!(
                "[tokens of the f-gram that was the input: {}]",
                painted.join(" ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::GeneratedToken;

    fn delta(text: &str, match_length: u8) -> Delta {
        let token = GeneratedToken {
            id: 1,
            match_length,
            logprob: None,
            top_logprobs: Vec::new(),
        };
        Delta {
            text: text.to_owned(),
            tokens: vec![token],
            ..Delta::default()
        }
    }

    #[test]
    fn longer_f_grams_are_darker_and_lines_end_unshaded() {
        let mut shade = Shade::default();
        assert_eq!(shade.text(&delta("plain", 0)), "plain");
        let two = shade.text(&delta("two", 2));
        assert_eq!(two, "\x1b[38;5;16;48;5;194mtwo\x1b[0m");
        let lines = shade.text(&delta("a\n", 3));
        assert_eq!(lines, "\x1b[38;5;16;48;5;157ma\x1b[0m\n");
        assert!(shade.text(&delta("x", 9)).contains("48;5;40m"));
        let legend = shade.legend();
        assert!(legend.contains(" 2 ") && legend.contains(" 9 ") && !legend.contains(" 0 "));
    }
}
