//! From checked flags to an engine that can run: model, then table or embed tier.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use scone_embed_client::{Monitor, Options};
use scone_model::{
    KvPool,
    checkpoint::{self, ModelFiles},
};
use scone_service::traces::Tracer;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    config::{EmbedSource, ModelConfig},
    embed_tier::{EmbedTier, Embedded, Remote, TableFacts, TableName},
    engine::EngineParts,
    error::Error,
    freed_memory,
    metrics::Metrics,
    model::ServedModel,
    table_cache,
};

/// How long to wait for a table that another process has open.
const TABLE_PATIENCE: Duration = Duration::from_secs(3);

/// What `GetModelInfo` and the metrics know of the embed tier.
#[derive(Clone, Debug)]
pub enum TierInfo {
    /// There are no tables: a plain model.
    None,
    /// Tables in this process.
    Embedded(Vec<Arc<TableFacts>>),
    /// Embed-services.
    Remote(Monitor),
}

impl TierInfo {
    /// "embedded", "remote" or "none".
    pub fn mode(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Embedded(_) => "embedded",
            Self::Remote(_) => "remote",
        }
    }

    /// The version of the default table that new sequences use; empty without one.
    pub fn table_id(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::Embedded(_) | Self::Remote(_) => {
                let default = self.table(&TableName::default());
                default.map_or_else(String::new, |facts| facts.table_id.clone())
            }
        }
    }

    /// The version of a table that new sequences use; `None` when there is no table of this name.
    pub fn table(&self, name: &TableName) -> Option<Arc<TableFacts>> {
        self.tables().into_iter().find(|facts| facts.name == *name)
    }

    /// The version of each table that new sequences use, the default table first.
    pub fn tables(&self) -> Vec<Arc<TableFacts>> {
        match self {
            Self::None => Vec::new(),
            Self::Embedded(tables) => tables.clone(),
            Self::Remote(monitor) => monitor.tables(),
        }
    }
}

/// Loads the model and opens or reaches its table.
///
/// # Errors
/// Names the file, address or fact that is wrong. A table that does not belong to the model is
/// [`Error::Incompatible`], with both values; [`Error::Stopped`] soon after `stop` is cancelled
/// while a table is waited for or built.
pub async fn prepare(
    config: &ModelConfig,
    (metrics, tracer): (Metrics, Tracer),
    stop: CancellationToken,
) -> Result<(EngineParts, TierInfo), Error> {
    let config = config.clone();
    let remote = match &config.embed {
        EmbedSource::Remote(options) => Some(Options::clone(options)),
        EmbedSource::Table(_) | EmbedSource::FromModel(_) => None,
    };
    let Loaded {
        model,
        pool,
        embedded,
    } = blocking(move || load(&config, &stop)).await?;
    let (tier, tier_info): (Option<Box<dyn EmbedTier>>, _) = match (remote, embedded) {
        (Some(mut options), _) => {
            options.model = Some(model.info.table_facts());
            let remote = Remote::connect(options).await?.traced(tracer);
            let monitor = remote.monitor();
            metrics.watch_embed_tier(monitor.clone());
            (Some(Box::new(remote)), TierInfo::Remote(monitor))
        }
        (None, Some(tier)) => {
            let tables = tier.tables();
            (Some(Box::new(tier)), TierInfo::Embedded(tables))
        }
        (None, None) => (None, TierInfo::None),
    };
    let packing = model.decoder.packing();
    info!(
        model = model.info.name,
        weights = packing.map_or("f32".to_owned(), |packing| packing.weights.to_string()),
        weight_bytes = packing.map(|packing| packing.bytes),
        kernels = packing.map(|packing| packing.kernels),
        vocab_size = model.info.vocab_size,
        context_tokens = model.info.context_tokens,
        kv_blocks = pool.blocks(),
        base_hash = model.info.base_hash,
        table_id = tier_info.table_id(),
        tables = tier_info.tables().len(),
        embed_mode = tier_info.mode(),
        "model loaded"
    );
    let parts = EngineParts {
        info: Arc::new(model.info),
        decoder: model.decoder,
        pool,
        tier,
        metrics,
    };
    Ok((parts, tier_info))
}

/// Reading weights and building tables take long: off the network threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Interrupted(error)),
    }
}

/// A model with its memory and, in this process, its table.
struct Loaded {
    model: ServedModel,
    pool: KvPool,
    embedded: Option<Embedded>,
}

fn load(config: &ModelConfig, stop: &CancellationToken) -> Result<Loaded, Error> {
    let files = ModelFiles::open(&config.model)?;
    let files = match config.has_foreign_tables() {
        true => files.hashing(),
        false => files,
    };
    let mut model = match config.device.is_cpu() {
        true => ServedModel::read_packed(&files, config.weights)?,
        false => ServedModel::read(&files, &config.device)?,
    };
    drop(files);
    if let Some(file) = &config.chat_template {
        let dir = checkpoint::model_dir(&config.model);
        model.info.read_chat_template(dir, Some(file))?;
    }
    let facts = model.info.table_facts();
    let open = |dir: &Path| Embedded::open(dir, &config.table, &facts);
    let mut embedded = match &config.embed {
        EmbedSource::Remote(_) => None,
        EmbedSource::Table(dir) => Some(open_when_free(|| open(dir), stop)?),
        EmbedSource::FromModel(cache) => {
            table_cache::open_or_build(&config.model, &model, cache, stop, open)?
        }
    };
    if !config.tables.is_empty() {
        let tables = embedded.get_or_insert_default();
        for named in &config.tables {
            open_when_free(|| tables.add(named, &config.table, &facts), stop)?;
        }
    }
    if !config.device.is_cpu() {
        model.decoder = model.decoder.cast(config.dtype)?;
    }
    freed_memory::give_back();
    let mut pool = model.new_pool(config.kv_memory, config.kv_dtype)?;
    if !config.device.is_cpu() {
        model.warm_up(&mut pool)?;
    }
    Ok(Loaded {
        model,
        pool,
        embedded,
    })
}

/// Opens a table; while another process has it, tries again for a moment: that may be a short
/// `generate`, or a service that is just ending.
fn open_when_free<T>(
    mut open: impl FnMut() -> Result<T, Error>,
    stop: &CancellationToken,
) -> Result<T, Error> {
    let began = Instant::now();
    loop {
        match open() {
            Err(Error::Table(scone_fgram::Error::TableInUse { dir })) => {
                if stop.is_cancelled() {
                    return Err(Error::Stopped);
                }
                // What to do about it the table itself cannot know.
                if began.elapsed() >= TABLE_PATIENCE {
                    return Err(Error::TableInUse { dir });
                }
                std::thread::sleep(TABLE_PATIENCE / 20);
            }
            result => return result,
        }
    }
}
