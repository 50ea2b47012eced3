//! Real look-ups: held-out text as the decoder would ask for it, over a real f-gram set.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use integration_tests::fixtures::text;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use scone_fgram::table::Span;
use scone_fgram::{FgramSet, TokenId};
use trainer::corpus;
use trainer::tokenizer::TextTokenizer;

use crate::fgrams::skewed_ids;

/// The demo model, in the repository.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo");

/// Ids of a synthetic document: short, so that many sequences have one each.
const SYNTHETIC_IDS: usize = 100;

/// Documents of the text in the repository, when no other is given.
const BUILT_IN_DOCUMENTS: usize = 4000;

/// Which f-gram set, and which text to look up in it.
#[derive(Debug, Clone, clap::Args)]
pub struct CorpusArgs {
    /// The f-gram set, as `trainer mine` writes it [default: the demo model's].
    #[arg(long, value_name = "FILE", requires = "tokenizer")]
    pub fgrams: Option<PathBuf>,

    /// The tokenizer.json it was mined with [default: the demo model's].
    #[arg(long, value_name = "FILE", requires = "fgrams")]
    pub tokenizer: Option<PathBuf>,

    /// Held-out text, as `trainer mine --input` takes it; several after one another [default: text
    /// put together from the sentences of the integration tests, which repeats itself far more than
    /// real text].
    #[arg(long, num_args = 1.., value_name = "PATH")]
    pub text: Vec<PathBuf>,
}

impl CorpusArgs {
    /// Reads the set.
    ///
    /// # Errors
    /// When the file is missing or damaged.
    pub fn fgram_set(&self) -> Result<FgramSet> {
        let demo = Path::new(DEMO).join("fgrams.bin");
        Ok(FgramSet::read(self.fgrams.as_deref().unwrap_or(&demo))?)
    }

    /// Reads and tokenises the text.
    ///
    /// # Errors
    /// When a file is missing, or the tokenizer is not the one of the set.
    pub fn trace(&self, set: &FgramSet) -> Result<Trace> {
        let demo = Path::new(DEMO).join("tokenizer.json");
        let tokenizer = TextTokenizer::load(self.tokenizer.as_deref().unwrap_or(&demo))?;
        ensure!(
            tokenizer.sha256() == set.header().tokenizer_hash,
            "the f-gram set was mined with another tokenizer"
        );
        if self.text.is_empty() {
            return Trace::built_in(&tokenizer);
        }
        let options = corpus::Options {
            cache_dir: None,
            ..corpus::Options::default()
        };
        let corpus = corpus::tokenize(&self.text, &tokenizer, &options);
        let corpus = corpus.context("cannot read the held-out text")?;
        Ok(Trace {
            documents: corpus.documents().collect(),
        })
    }

    /// What was read, for cases.
    pub fn name(&self) -> String {
        let text = |path: &PathBuf| path.display().to_string();
        let set = self.fgrams.as_ref().map_or("demo".to_owned(), text);
        let texts: Vec<String> = self.text.iter().map(text).collect();
        let texts = if texts.is_empty() {
            "built-in text".to_owned()
        } else {
            texts.join(" ")
        };
        format!("{set} on {texts}")
    }
}

/// One look-up, as `Table::lookup` takes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Ids of all spans, end to end.
    pub ids: Vec<TokenId>,
    /// One for each sequence.
    pub spans: Vec<Span>,
}

/// Documents of token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    documents: Vec<Vec<TokenId>>,
}

impl Trace {
    fn built_in(tokenizer: &TextTokenizer) -> Result<Self> {
        let texts = text::documents(1, BUILT_IN_DOCUMENTS);
        let documents = texts.iter().map(|text| tokenizer.encode_document(text));
        Ok(Self {
            documents: documents.collect::<Result<_>>()?,
        })
    }

    /// Documents of a synthetic set with `positions` ids or a few more: half of the time an f-gram
    /// follows, else one id that is as frequent as in the set.
    pub fn synthetic(set: &FgramSet, positions: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(set.len() as u64 + 1);
        let document = |rng: &mut ChaCha8Rng| {
            let mut ids = Vec::with_capacity(SYNTHETIC_IDS + usize::from(set.header().max_n));
            while ids.len() < SYNTHETIC_IDS {
                if rng.random() {
                    ids.extend_from_slice(set.get(rng.random_range(0..set.len())).ids);
                } else {
                    ids.extend(skewed_ids(rng, 1));
                }
            }
            ids
        };
        Self {
            documents: (0..positions.div_ceil(SYNTHETIC_IDS))
                .map(|_| document(&mut rng))
                .collect(),
        }
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.documents.iter().map(Vec::len).sum()
    }

    /// Decode steps: `lanes` sequences, each going through documents of its own, position by
    /// position. At most `limit` positions in all.
    pub fn steps(&self, lanes: usize, max_n: usize, limit: usize) -> Vec<Step> {
        let lane = |lane| {
            let documents = self.documents.iter().skip(lane).step_by(lanes);
            documents.flat_map(|ids| (1..=ids.len()).map(move |end| (ids, end)))
        };
        let mut lanes: Vec<_> = (0..lanes).map(lane).collect();
        let mut steps = Vec::new();
        let mut asked = 0;
        while asked < limit {
            let mut step = Step::default();
            for (ids, end) in lanes.iter_mut().filter_map(Iterator::next) {
                let window = &ids[end.saturating_sub(max_n)..end];
                step.ids.extend_from_slice(window);
                step.spans.push(Span {
                    context: window.len() as u32 - 1,
                    answers: 1,
                });
            }
            // The end of the shortest lane is the end: all steps have the same number of sequences.
            if step.spans.len() < lanes.len() {
                break;
            }
            asked += step.spans.len();
            steps.push(step);
        }
        steps
    }

    /// Prompts of `positions` ids each, documents put together.
    pub fn prompts(&self, positions: usize) -> Vec<Vec<TokenId>> {
        let ids: Vec<TokenId> = self.documents.iter().flatten().copied().collect();
        ids.chunks_exact(positions).map(<[_]>::to_vec).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fgrams;

    #[test]
    fn steps_ask_for_each_position_once_with_its_context() {
        let documents = vec![vec![1, 2, 3], vec![4, 5], vec![6]];
        let steps = Trace { documents }.steps(2, 2, usize::MAX);
        // Lanes are [1 2 3][6] and [4 5].
        assert_eq!(steps.len(), 2);
        assert_eq!(steps[0].ids, [1, 4]);
        assert_eq!(steps[1].ids, [1, 2, 4, 5]);
        assert_eq!(
            steps[1].spans,
            [Span {
                context: 1,
                answers: 1
            }; 2]
        );
    }

    #[test]
    fn synthetic_traces_match_often() {
        let set = fgrams::synthetic(2000).expect("a set");
        let trace = Trace::synthetic(&set, 5000);
        assert!(trace.positions() >= 5000);
        let matcher = set.matcher();
        let mut matches = Vec::new();
        for document in &trace.documents {
            matcher.tag(document, 0, &mut matches);
        }
        let matched = matches.iter().flatten().count();
        assert!(
            2 * matched > matches.len(),
            "{matched} of {}",
            matches.len()
        );
    }

    #[test]
    fn the_built_in_text_fits_the_demo_set() {
        let args = CorpusArgs {
            fgrams: None,
            tokenizer: None,
            text: Vec::new(),
        };
        let set = args.fgram_set().expect("the demo's set");
        let trace = args.trace(&set).expect("its tokenizer");
        assert!(trace.positions() > 100_000);
        assert_eq!(trace.prompts(2048)[0].len(), 2048);
    }
}
