//! The token ids to ask for.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context as _, ensure};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use scone_fgram::table::{Manifest, TableKeys};
use scone_proto::embed::v1::{GetTableInfoResponse, LookupRequest, Span};

use super::args::{Draw, LoadArgs, Shape};

/// The largest file of ids that is read: 1 GiB, 268 million ids.
const MAX_IDS_BYTES: u64 = 1 << 30;

/// Where ids come from.
#[derive(Debug)]
pub(super) struct Source {
    text: Text,
    /// K: how many ids a window has.
    window: usize,
}

#[derive(Debug)]
enum Text {
    /// f-grams in served order, end to end.
    Fgrams {
        ids: Vec<u32>,
        /// Where each ends.
        ends: Vec<usize>,
        draw: Draw,
    },
    /// One long document.
    Document(Vec<u32>),
}

impl Source {
    /// Reads the table's f-grams or the file of ids; slow for large ones.
    pub(super) fn read(args: &LoadArgs, info: &GetTableInfoResponse) -> anyhow::Result<Self> {
        let text = match (&args.table, &args.ids) {
            (_, Some(file)) => Text::Document(document(file, info)?),
            (Some(dir), None) => fgrams(dir, args.draw)?,
            (None, None) => anyhow::bail!("either --table or --ids is needed"),
        };
        let window = info.max_n as usize;
        if let Text::Document(ids) = &text {
            ensure!(ids.len() > window, "--ids has {} ids, too few", ids.len());
        }
        Ok(Self { text, window })
    }
}

fn fgrams(dir: &Path, draw: Draw) -> anyhow::Result<Text> {
    let manifest = Manifest::read(dir)?;
    let keys = TableKeys::read(dir, &manifest)?;
    ensure!(!keys.is_empty(), "the table has no f-grams");
    let (mut ids, mut ends) = (Vec::new(), Vec::with_capacity(keys.len()));
    for key in keys.iter() {
        ids.extend_from_slice(key.as_ref());
        ends.push(ids.len());
    }
    Ok(Text::Fgrams { ids, ends, draw })
}

fn document(file: &Path, info: &GetTableInfoResponse) -> anyhow::Result<Vec<u32>> {
    let context = || format!("cannot read {}", file.display());
    let bytes = fs::metadata(file).with_context(context)?.len();
    ensure!(
        bytes <= MAX_IDS_BYTES,
        "{} has {bytes} bytes, the limit is {MAX_IDS_BYTES}",
        file.display()
    );
    let bytes = fs::read(file).with_context(context)?;
    let (ids, rest) = bytes.as_chunks::<4>();
    ensure!(rest.is_empty(), "{} is not whole u32s", file.display());
    let ids: Vec<u32> = ids.iter().map(|id| u32::from_le_bytes(*id)).collect();
    if let Some(id) = ids.iter().find(|id| **id >= info.vocab_size) {
        anyhow::bail!("id {id} is not below vocab_size {}", info.vocab_size);
    }
    Ok(ids)
}

/// Makes the requests of one stream.
#[derive(Debug)]
pub(super) struct Drawer {
    source: Arc<Source>,
    shape: Shape,
    random: StdRng,
}

impl Drawer {
    pub(super) fn new(source: Arc<Source>, shape: Shape, seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self {
            source,
            shape,
            random,
        }
    }

    pub(super) fn next_request(&mut self, id: u64) -> LookupRequest {
        let mut ids = Vec::new();
        let spans = match self.shape {
            Shape::Windows(windows) => (0..windows).map(|_| self.window(&mut ids)).collect(),
            Shape::Prompt(positions) => vec![self.prompt(positions, &mut ids)],
        };
        request(id, &ids, spans)
    }

    /// The last ids of a sequence, the last one to be answered.
    fn window(&mut self, ids: &mut Vec<u32>) -> Span {
        let before = ids.len();
        match &self.source.text {
            Text::Fgrams { .. } => self.push_fgram(ids),
            Text::Document(text) => {
                let start = self
                    .random
                    .random_range(0..=text.len() - self.source.window);
                ids.extend_from_slice(&text[start..start + self.source.window]);
            }
        }
        Span {
            context: (ids.len() - before - 1) as u32,
            answers: 1,
        }
    }

    /// A stretch of the document, or f-grams end to end.
    fn prompt(&mut self, positions: u32, ids: &mut Vec<u32>) -> Span {
        let wanted = positions as usize;
        match &self.source.text {
            Text::Fgrams { .. } => {
                while ids.len() < wanted {
                    self.push_fgram(ids);
                }
            }
            Text::Document(text) => {
                let start = self.random.random_range(0..text.len());
                ids.extend(text.iter().cycle().skip(start).take(wanted));
            }
        }
        ids.truncate(wanted);
        Span {
            context: 0,
            answers: positions,
        }
    }

    fn push_fgram(&mut self, ids: &mut Vec<u32>) {
        let Text::Fgrams {
            ids: all,
            ends,
            draw,
        } = &self.source.text
        else {
            return;
        };
        let row = match draw {
            Draw::Uniform => self.random.random_range(0..ends.len()),
            Draw::Zipf => zipf(self.random.random(), ends.len()),
        };
        let start = if row == 0 { 0 } else { ends[row - 1] };
        ids.extend_from_slice(&all[start..ends[row]]);
    }
}

/// The rank, 0-based, of a row among `rows`, where rank r has a weight close to 1/(r+1): the
/// logarithm of the rank is spread evenly. `random` is in `0..1`.
fn zipf(random: f64, rows: usize) -> usize {
    let rank = ((rows + 1) as f64).powf(random) as usize;
    rank.saturating_sub(1).min(rows - 1)
}

/// A request for `spans`, which cover `ids`.
fn request(id: u64, ids: &[u32], spans: Vec<Span>) -> LookupRequest {
    LookupRequest {
        id,
        token_ids: ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
        spans,
        table_id: None,
        table: String::new(),
        traceparent: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: Text) -> Arc<Source> {
        Arc::new(Source { text, window: 3 })
    }

    fn fgrams() -> Arc<Source> {
        source(Text::Fgrams {
            ids: vec![1, 2, 3, 4, 5],
            ends: vec![2, 5],
            draw: Draw::Zipf,
        })
    }

    #[test]
    fn zipf_stays_in_range_and_prefers_the_first() {
        assert_eq!(zipf(0.0, 10), 0);
        assert_eq!(zipf(1.0 - f64::EPSILON, 10), 9);
        assert_eq!(zipf(0.999, 1), 0);
        // Half of the draws go to the first square root of the rows.
        assert!(zipf(0.5, 1_000_000) <= 1_000);
    }

    #[test]
    fn windows_are_whole_fgrams_with_one_answer() {
        let mut drawer = Drawer::new(fgrams(), Shape::Windows(8), 1);
        let request = drawer.next_request(3);
        assert_eq!((request.id, request.spans.len()), (3, 8));
        let ids: u32 = request.spans.iter().map(|s| s.context + s.answers).sum();
        assert_eq!(ids as usize * 4, request.token_ids.len());
        assert!(request.spans.iter().all(|span| span.answers == 1));
    }

    #[test]
    fn prompts_have_the_positions_asked_for() {
        for source in [fgrams(), source(Text::Document(vec![1, 2, 3, 4, 5, 6]))] {
            let mut drawer = Drawer::new(source, Shape::Prompt(50), 1);
            let request = drawer.next_request(1);
            assert_eq!(request.token_ids.len(), 4 * 50);
            assert_eq!(
                (request.spans[0].context, request.spans[0].answers),
                (0, 50)
            );
        }
    }
}
