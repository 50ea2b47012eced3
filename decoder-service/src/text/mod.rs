//! From token ids to text that can be sent: whole characters, and nothing that may still turn out
//! to be part of a stop string.

mod bound;
mod detokenizer;
mod pieces;
mod stop;
mod tokenizer;

use std::sync::Arc;

pub(crate) use bound::longest_token;
pub use detokenizer::{Decode, DecodeError, Detokenizer};
pub use pieces::Pieces;
pub use stop::{StopMatcher, Stopped};
pub use tokenizer::load_tokenizer;

/// The text of one sequence as it grows.
#[derive(Debug)]
pub struct TextStream {
    detokenizer: Detokenizer,
    stop: StopMatcher,
}

impl TextStream {
    /// An empty text. `context` are ids that come before it (the end of the prompt): some decoders
    /// write the first token of a text without its space.
    pub fn new(decoder: Arc<dyn Decode>, context: &[u32], stop: Arc<[String]>) -> Self {
        Self {
            detokenizer: Detokenizer::new(decoder, context),
            stop: StopMatcher::new(stop),
        }
    }

    /// Adds a token. Appends to `out` what may be sent, and says which stop string (by its index
    /// in the request) ended the text, if one did. With `may_stop` unset the text is not searched:
    /// the request's `min_tokens` are not reached.
    pub fn push(
        &mut self,
        id: u32,
        may_stop: bool,
        out: &mut String,
    ) -> Result<Option<Stopped>, DecodeError> {
        let text = self.detokenizer.push(id)?;
        if may_stop {
            Ok(self.stop.push(&text, out))
        } else {
            out.push_str(&text);
            Ok(None)
        }
    }

    /// The rest of the text: what was held back for an unfinished character or a possible stop
    /// string, once no more tokens will come.
    pub fn finish(
        &mut self,
        may_stop: bool,
        out: &mut String,
    ) -> Result<Option<Stopped>, DecodeError> {
        let text = self.detokenizer.finish()?;
        if may_stop && let Some(stopped) = self.stop.push(&text, out) {
            return Ok(Some(stopped));
        }
        self.stop.finish(out);
        if !may_stop {
            out.push_str(&text);
        }
        Ok(None)
    }
}
