//! From the flags of model and table to what is checked.

use std::path::{Path, PathBuf};

use candle_core::Device;
use scone_embed_client::{Address, Options};
use scone_fgram::{
    RowDtype, TableOptions,
    table::{MAX_TABLES, NamedDir, repeated_name},
};
use scone_model::{DeviceChoice, Dtype, KvDtype, WeightType};

use super::{args::ModelArgs, problems::Problems};
use crate::{engine::OnLookupFailure, error::Error};

/// Where rows come from.
#[derive(Clone, Debug)]
pub enum EmbedSource {
    /// A table directory, opened by this process.
    Table(PathBuf),
    /// Embed-services.
    Remote(Box<Options>),
    /// The table of the model, built on first use; nothing for a plain model.
    FromModel(CacheOptions),
}

/// Where and how tables are built on first use.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// The cache folder.
    pub dir: PathBuf,
    /// Stored type of the rows.
    pub dtype: RowDtype,
}

/// The checked form of [`ModelArgs`].
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Model directory.
    pub model: PathBuf,
    /// Chat template in place of the model's.
    pub chat_template: Option<PathBuf>,
    /// Where the model computes.
    pub device: Device,
    /// Type of the numbers it computes in; there is one.
    pub dtype: Dtype,
    /// Type that the weights are held in.
    pub weights: WeightType,
    /// Where rows of the default table come from, or all rows.
    pub embed: EmbedSource,
    /// Tables in this process beside the default one.
    pub tables: Vec<NamedDir>,
    /// How to open each table in this process.
    pub table: TableOptions,
    /// Memory for keys and values, in bytes.
    pub kv_memory: u64,
    /// Type of keys and values.
    pub kv_dtype: KvDtype,
    /// What to do without an answer of the embed tier.
    pub on_lookup_failure: OnLookupFailure,
}

impl ModelConfig {
    /// Whether there are tables that others made: they may have been made over this model by another
    /// f-gram model, which only its base hash tells.
    pub fn has_foreign_tables(&self) -> bool {
        !matches!(self.embed, EmbedSource::FromModel(_)) || !self.tables.is_empty()
    }
}

impl ModelArgs {
    /// Checks the flags and makes the device ready.
    ///
    /// # Errors
    /// [`Error::Flags`] names every flag that is wrong, with its limit.
    pub fn check(&self) -> Result<ModelConfig, Error> {
        let mut problems = Problems::default();
        let config = self.config(&mut problems);
        problems.or(config)
    }

    /// `None` only with a problem.
    pub(super) fn config(&self, problems: &mut Problems) -> Option<ModelConfig> {
        let model = self.model.clone().unwrap_or_else(demo_model);
        // A file is a GGUF file.
        if !model.is_file() {
            problems.directory("--model", &model);
        }
        let opened = self.device.open();
        let device = opened.inspect_err(|error| {
            problems.add(format!("--{error}"));
        });
        let weights = match (self.weights, self.device) {
            (Some(weights), DeviceChoice::Cpu) => weights,
            (None, DeviceChoice::Cpu) => WeightType::default_here(),
            (None | Some(WeightType::F32), _) => WeightType::F32,
            (Some(weights), device) => {
                problems.add(format!(
                    "--weights {weights} needs --device cpu; {device} takes f32"
                ));
                weights
            }
        };
        if self.dtype != Dtype::F32 && self.device == DeviceChoice::Cpu {
            problems.add(format!(
                "--dtype {} needs a GPU; on a CPU models compute in f32, and --weights says what \
                 they read",
                self.dtype
            ));
        }
        let embed = self.source(problems);
        self.numbers(problems);
        Some(ModelConfig {
            model,
            chat_template: self.chat_template.clone(),
            device: device.ok()?,
            dtype: self.dtype,
            weights,
            embed: embed?,
            tables: self.named_tables(),
            table: TableOptions {
                hot_bytes: self.hot_bytes / self.table_count(),
                ..TableOptions::default()
            },
            kv_memory: self.kv_memory,
            kv_dtype: self.kv_dtype,
            on_lookup_failure: self.on_lookup_failure,
        })
    }

    fn numbers(&self, problems: &mut Problems) {
        problems.range("--threads", self.threads, 0..=1024);
        problems.range("--io-threads", self.io_threads, 1..=64);
        if self.lookup_timeout.is_zero() {
            problems.add("--lookup-timeout is 0; at least 1ms is needed");
        }
        for (flag, interval) in [
            ("--embed-resolve-interval", self.embed_resolve_interval),
            ("--embed-poll-interval", self.embed_poll_interval),
        ] {
            problems.interval(flag, interval);
        }
    }

    fn source(&self, problems: &mut Problems) -> Option<EmbedSource> {
        for table in &self.table {
            problems.directory("--table", &table.dir);
        }
        if let Some(name) = repeated_name(&self.table) {
            problems.add(format!("--table: the {name} table is there twice"));
        }
        if self.table.len() > MAX_TABLES {
            let got = self.table.len();
            problems.add(format!(
                "--table: {got} tables; at most {MAX_TABLES} are allowed"
            ));
        }
        let mut tables = self.table.iter();
        if let Some(default) = tables.find(|table| table.name.is_default()) {
            return Some(EmbedSource::Table(default.dir.clone()));
        }
        if !self.embed.is_empty() {
            let tls = self.embed_tls.open(&mut problems.0);
            let options = Options {
                tls,
                timeout: self.lookup_timeout,
                start_timeout: self.embed_start_timeout,
                resolve_interval: self.embed_resolve_interval,
                poll_interval: self.embed_poll_interval,
                hedge: self.embed_hedge,
                ..Options::new(self.addresses(problems))
            };
            return Some(EmbedSource::Remote(Box::new(options)));
        }
        let dir = self.cache_dir.clone().or_else(scone_files::cache_dir);
        if dir.is_none() {
            let unset = "neither XDG_CACHE_HOME nor HOME is an absolute path";
            problems.add(format!("--cache-dir is needed: {unset}"));
        }
        Some(EmbedSource::FromModel(CacheOptions {
            dir: dir?,
            dtype: self.table_dtype,
        }))
    }

    fn named_tables(&self) -> Vec<NamedDir> {
        let named = self.table.iter().filter(|table| !table.name.is_default());
        named.cloned().collect()
    }

    /// Tables in this process, of which the default one always is.
    fn table_count(&self) -> u64 {
        1 + self.named_tables().len() as u64
    }

    fn addresses(&self, problems: &mut Problems) -> Vec<Address> {
        let mut addresses = Vec::new();
        let tls = self.embed_tls.embed_tls_ca.is_some();
        for text in &self.embed {
            match text.split_once("://") {
                Some(("http", _)) if tls => problems.add(format!(
                    "--embed {text}: plain, and --embed-tls-ca asks for TLS; leave http:// away"
                )),
                Some(("https", _)) if !tls => {
                    problems.add(format!("--embed {text}: TLS needs --embed-tls-ca"));
                }
                _ => {}
            }
            match text.parse() {
                Ok(address) => addresses.push(address),
                Err(problem) => problems.add(format!("--embed {text}: {problem}")),
            }
        }
        addresses
    }
}

/// `models/demo` here, else where this program was built.
fn demo_model() -> PathBuf {
    let here = PathBuf::from("models/demo");
    if here.is_dir() {
        return here;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    if source.is_dir() { source } else { here }
}
