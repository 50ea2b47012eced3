//! One module per subcommand: its flags (`Args`) and its `run`; what several share beside them.

pub mod benchmark;
pub mod convert;
pub mod corpus_args;
pub mod evaluate;
pub mod fgrams;
pub mod graft;
pub mod mine;
pub mod output;
pub mod plot;
pub mod precompute;
pub mod sweep;
pub mod tokenize;
pub mod tokenizer;
pub mod train;

/// What the binary can do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Train a byte-level BPE tokenizer.
    Tokenizer(tokenizer::Args),
    /// Tokenise a corpus once, for all other commands or other engines.
    Tokenize(tokenize::Args),
    /// Find the f-grams of a corpus: its most frequent n-grams of token ids.
    Mine(mine::Args),
    /// Show an f-gram set.
    Fgrams(fgrams::Args),
    /// Train a model and its f-gram model together on a corpus.
    Train(train::Args),
    /// Train every combination of some values of a training config.
    Sweep(sweep::Args),
    /// Draw the losses and the speed of training runs.
    Plot(plot::Args),
    /// Give any model f-grams whose rows change nothing: where training starts from a base model.
    Graft(graft::Args),
    /// Write any model that can be read, GGUF files among them, in Hugging Face layout.
    Convert(convert::Args),
    /// Compute the f-gram table of a trained model.
    Precompute(precompute::Args),
    /// Measure a model on held-out text.
    Evaluate(evaluate::Args),
    /// Measure several models on several texts, and write one report.
    Benchmark(benchmark::Args),
}

impl Command {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// Whatever stopped it, with the file or flag named.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Command::Tokenizer(args) => tokenizer::run(args),
            Command::Tokenize(args) => tokenize::run(args),
            Command::Mine(args) => mine::run(args),
            Command::Fgrams(args) => fgrams::run(args),
            Command::Train(args) => train::run(args),
            Command::Sweep(args) => sweep::run(args),
            Command::Plot(args) => plot::run(args),
            Command::Graft(args) => graft::run(args),
            Command::Convert(args) => convert::run(args),
            Command::Precompute(args) => precompute::run(args),
            Command::Evaluate(args) => evaluate::run(args),
            Command::Benchmark(args) => benchmark::run(args),
        }
    }
}
