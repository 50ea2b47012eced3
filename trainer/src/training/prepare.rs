//! Everything a run reads, read and checked before the first step.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use candle_core::Device;
use scone_fgram::set::FgramSet;
use scone_model::config::{FgramModelConfig, ModelConfig};
use scone_model::{init_fgram_parameters, init_parameters};

use super::checkpoint::InputHashes;
use super::config::TrainConfig;
use super::network::Network;
use super::shape::{eos_id, fgram_model_config, model_config};
use super::stream::{TokenStream, WindowOrder};
use crate::corpus::{self, Mixture};
use crate::evaluation::HeldOut;
use crate::fgram_set::load_set;
use crate::tokenizer::TextTokenizer;

/// The f-gram side of a run.
pub(super) struct Fgrams {
    pub(super) set: FgramSet,
    pub(super) config: FgramModelConfig,
}

/// A run that is ready for its first step.
pub(super) struct Prepared {
    pub(super) tokenizer: TextTokenizer,
    pub(super) eos: u32,
    pub(super) fgrams: Option<Fgrams>,
    pub(super) model_config: ModelConfig,
    pub(super) network: Network,
    pub(super) stream: TokenStream,
    pub(super) order: WindowOrder,
    pub(super) held_out: Vec<HeldOut>,
    pub(super) hashes: InputHashes,
}

/// Reads tokenizer, f-gram set and texts, and makes fresh weights on `device`.
pub(super) fn prepare(
    config: &TrainConfig,
    options: &corpus::Options,
    device: &Device,
) -> Result<Prepared> {
    let tokenizer = TextTokenizer::load(&config.tokenizer)?;
    let eos = eos_id(&tokenizer)?;
    let fgrams = match &config.fgrams {
        None => None,
        Some(path) => {
            let set = load_set(path, &tokenizer)?;
            let config = fgram_model_config(config, set.header().max_n);
            Some(Fgrams { set, config })
        }
    };
    let model_config = model_config(config, tokenizer.vocab_size(), eos)?;
    let network = fresh_network(&model_config, fgrams.as_ref(), config.training.seed, device)?;
    let (stream, order) = read_stream(config, &tokenizer, eos, fgrams.as_ref(), options)?;
    let held_out = read_held_out(config, &tokenizer, options)?;
    let hashes = InputHashes {
        tokenizer: scone_files::hex(&tokenizer.sha256()),
        fgram_set: fgrams.as_ref().map_or_else(String::new, |f| f.set.hash()),
        token_stream: stream.hash(),
    };
    Ok(Prepared {
        tokenizer,
        eos,
        fgrams,
        model_config,
        network,
        stream,
        order,
        held_out,
        hashes,
    })
}

fn fresh_network(
    model_config: &ModelConfig,
    fgrams: Option<&Fgrams>,
    seed: u64,
    device: &Device,
) -> Result<Network> {
    let main = init_parameters(model_config, seed)?;
    match fgrams {
        None => Network::new(model_config, &main, None, device),
        Some(fgrams) => {
            let own = init_fgram_parameters(&fgrams.config, model_config, seed)?;
            Network::new(model_config, &main, Some((&fgrams.config, &own)), device)
        }
    }
}

fn read_stream(
    config: &TrainConfig,
    tokenizer: &TextTokenizer,
    eos: u32,
    fgrams: Option<&Fgrams>,
    options: &corpus::Options,
) -> Result<(TokenStream, WindowOrder)> {
    let training = &config.training;
    let sources = config.data.train.iter();
    let sources: Vec<_> = sources
        .map(|source| (source.path.clone(), source.weight))
        .collect();
    let mixture = corpus::mix(&sources, training.seed, tokenizer, options).context("data.train")?;
    let stream = join(&mixture, eos, fgrams, training.seed);
    let per_step = training.batch_tokens / training.sequence_length;
    let order = WindowOrder::new(
        stream.len(),
        training.sequence_length,
        per_step,
        training.seed,
    )?;
    tracing::info!(
        documents = mixture.documents.len(),
        tokens = stream.len(),
        matched = format_args!("{:.3}", stream.matched_share()),
        epochs = format_args!(
            "{:.2}",
            (training.total_steps() * per_step as u64) as f64 / order.windows() as f64
        ),
        "training text"
    );
    Ok((stream, order))
}

fn join(mixture: &Mixture, eos: u32, fgrams: Option<&Fgrams>, seed: u64) -> TokenStream {
    let matcher = fgrams.map(|f| f.set.matcher());
    let read = |document: usize, out: &mut Vec<u32>| {
        let corpus = &mixture.corpus;
        corpus.copy_ids(corpus.document_range(mixture.documents[document]), out);
    };
    TokenStream::new(mixture.documents.len(), read, eos, matcher.as_ref(), seed)
}

/// One text for each path of `data.valid`, under the path as name.
fn read_held_out(
    config: &TrainConfig,
    tokenizer: &TextTokenizer,
    options: &corpus::Options,
) -> Result<Vec<HeldOut>> {
    let read = |path: &PathBuf| {
        let name = path.display().to_string();
        let limit = Some(config.training.eval_tokens);
        HeldOut::load(&name, std::slice::from_ref(path), tokenizer, options, limit)
            .context("data.valid")
    };
    config.data.valid.iter().map(read).collect()
}
