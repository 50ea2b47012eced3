//! Everything a run reads, read and checked before the first step.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use candle_core::Device;
use scone_fgram::set::FgramSet;
use scone_model::config::{FgramModelConfig, ModelConfig};
use scone_model::init_fgram_parameters;

use super::checkpoint::InputHashes;
use super::config::TrainConfig;
use super::control::Control;
use super::main_model::{BaseFiles, MainModel};
use super::network::Network;
use super::shape::{eos_id, fgram_model_config};
use super::stream::{Tags, TokenStream, WindowOrder};
use crate::corpus::{self, Mixture};
use crate::evaluation::HeldOut;
use crate::fgram_set::{first_fgrams, load_set};
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
    /// Where a base model is.
    pub(super) base: Option<BaseFiles>,
    pub(super) network: Network,
    pub(super) stream: TokenStream,
    pub(super) order: WindowOrder,
    pub(super) held_out: Vec<HeldOut>,
    pub(super) hashes: InputHashes,
}

impl Prepared {
    /// Optimiser steps of the whole run.
    pub(super) fn total_steps(&self, config: &TrainConfig) -> u64 {
        config.training.total_steps(self.order.windows())
    }
}

/// Reads tokenizer, base model, f-gram set and texts, and puts the weights on `device`.
pub(super) fn prepare(
    config: &TrainConfig,
    options: &corpus::Options,
    device: &Device,
) -> Result<Prepared> {
    let tokenizer = TextTokenizer::load(&config.tokenizer_path())?;
    let main = main_model(config, &tokenizer)?;
    let eos = eos_id(&tokenizer, main.base_config())?;
    let mut fgrams = match &config.fgrams {
        None => None,
        Some(path) => {
            let mut set = load_set(path, &tokenizer)?;
            if let Some(max) = config.max_fgrams {
                set = first_fgrams(&set, max).with_context(|| path.display().to_string())?;
            }
            let max_n = set.header().max_n;
            let config = fgram_model_config(&config.fgram_model, &main.config, max_n);
            Some(Fgrams { set, config })
        }
    };
    let mut network = network(config, &main, fgrams.as_ref(), device)?;
    if config.training.recompute {
        network.recompute_blocks().context("training.recompute")?;
    }
    let precision = config.training.precision;
    network
        .train_with(precision)
        .context("training.precision")?;
    let (stream, order) = read_stream(config, &tokenizer, eos, fgrams.as_ref(), options)?;
    if let (Some(fgrams), Some(_)) = (&mut fgrams, config.max_fgrams) {
        // Those of the whole set are not those of a part: without longer f-grams shorter ones match.
        let counts = match_counts(&fgrams.set, &stream);
        fgrams.set.set_match_counts(counts)?;
    }
    let held_out = read_held_out(config, &tokenizer, options)?;
    let hashes = InputHashes {
        tokenizer: scone_files::hex(&tokenizer.sha256()),
        fgram_set: fgrams.as_ref().map_or_else(String::new, |f| f.set.hash()),
        token_stream: stream.hash(),
        base: main.hash,
    };
    Ok(Prepared {
        tokenizer,
        eos,
        fgrams,
        model_config: main.config,
        base: main.base,
        network,
        stream,
        order,
        held_out,
        hashes,
    })
}

/// How often each f-gram, by rank, is the longest match in the training text.
fn match_counts(set: &FgramSet, stream: &TokenStream) -> Vec<u64> {
    let matcher = set.matcher();
    let mut counts = vec![0; set.len()];
    for at in 0..stream.len() {
        let row = stream.fgram(at).and_then(|ids| matcher.row(ids));
        if let Some(count) = row.and_then(|row| counts.get_mut(row as usize)) {
            *count += 1;
        }
    }
    counts
}

fn main_model(config: &TrainConfig, tokenizer: &TextTokenizer) -> Result<MainModel> {
    match (&config.base, &config.model) {
        (Some(base), _) => MainModel::read(config, base, tokenizer),
        (None, Some(shape)) => MainModel::fresh(config, shape, tokenizer),
        (None, None) => bail!("missing key `model`"),
    }
}

fn network(
    config: &TrainConfig,
    main: &MainModel,
    fgrams: Option<&Fgrams>,
    device: &Device,
) -> Result<Network> {
    let seed = config.training.seed;
    let own = match fgrams {
        Some(fgrams) if config.control.is_none() => {
            let parameters = init_fgram_parameters(&fgrams.config, &main.config, seed)?;
            Some((&fgrams.config, parameters))
        }
        _ => None,
    };
    let fgram = own.as_ref().map(|(config, own)| (*config, own));
    let trainable = config.trainable;
    let network = Network::new(&main.config, &main.parameters, fgram, trainable, device)?;
    let Some(kind) = config.control else {
        return Ok(network);
    };
    let name = main.config.token_embedding_name();
    let table = main.parameters.get(name).context("no token embedding")?;
    let (control, rows) = Control::new(kind, fgrams.map(|fgrams| &fgrams.set), table)?;
    network.with_control(control, &rows)
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
    let stream = join(&mixture, eos, config, fgrams);
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
            (training.total_steps(order.windows()) * per_step as u64) as f64
                / order.windows() as f64
        ),
        "training text"
    );
    Ok((stream, order))
}

fn join(mixture: &Mixture, eos: u32, config: &TrainConfig, fgrams: Option<&Fgrams>) -> TokenStream {
    let matcher = fgrams.map(|f| f.set.matcher());
    let tags = match (&matcher, config.control.and_then(Control::last_tokens)) {
        (Some(matcher), _) => Tags::Fgrams(matcher),
        (None, Some(count)) => Tags::LastTokens(count),
        (None, None) => Tags::None,
    };
    let seed = config.training.seed;
    let read = |document: usize, out: &mut Vec<u32>| {
        let corpus = &mixture.corpus;
        corpus.copy_ids(corpus.document_range(mixture.documents[document]), out);
    };
    TokenStream::new(mixture.documents.len(), read, eos, &tags, seed)
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
