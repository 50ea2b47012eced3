//! The model directory as the decoder-service needs it: weights, tokenizer, defaults.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::Device;
use scone_fgram::{EncodedRow, RowDtype};
use scone_model::sampling::SamplingParams;
use scone_model::{
    Decoder, Giving, KV_BLOCK_POSITIONS, KvDtype, KvPool, ModelConfig, SconeConfig, Segment,
    WeightType,
    checkpoint::{self, LoadedModel, ModelFiles},
};
use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::{
    chat::{self, ChatTemplate, Conversation},
    embed_tier::ModelFacts,
    error::Error,
    text::{Decode, DecodeError, load_tokenizer, longest_token},
};

/// Facts of the model that requests are checked against.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Name of the model directory.
    pub name: String,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Most tokens of prompt and output together.
    pub context_tokens: usize,
    /// What bounds them when it is not the model: the flag to change.
    pub context_bound: Option<&'static str>,
    /// Width of an input embedding in elements.
    pub dim: usize,
    /// K of scone.json; `None` without one: tables made over this model have a K of their own, and
    /// where there is no default table, the token embedding is all there is.
    pub max_n: Option<usize>,
    /// Starts an empty prompt.
    pub bos_token_id: Option<u32>,
    /// End a text.
    pub eos_token_ids: Vec<u32>,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Most bytes of text that a token stands for, if there is such a number.
    pub longest_token: Option<usize>,
    /// SHA-256 of tokenizer.json, hexadecimal.
    pub tokenizer_hash: String,
    /// What tokenizer_config.json says, for clients that ask; an empty object without one.
    pub tokenizer_config: serde_json::Value,
    /// How conversations are written; `None` for a model that knows none.
    pub chat_template: Option<Arc<ChatTemplate>>,
    /// SHA-256 of f-gram model and token embedding; `None` without an f-gram model.
    pub model_hash: Option<String>,
    /// Base hash of the main model, if it was asked for.
    pub base_hash: Option<String>,
    /// What absent request fields mean.
    pub defaults: Defaults,
    /// fgrams.bin of the model directory, if it was there.
    pub fgrams: Option<PathBuf>,
}

/// What absent request fields mean.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// `max_tokens`; the rest of the context when absent.
    pub max_new_tokens: Option<u32>,
}

/// A model directory, loaded.
#[derive(Debug)]
pub struct ServedModel {
    /// Facts for checking requests.
    pub info: ModelInfo,
    /// The main model.
    pub decoder: Decoder,
}

/// The fields of `generation_config.json` that are used.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GenerationConfig {
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    max_new_tokens: Option<u32>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl GenerationConfig {
    /// `do_sample: false` is greedy, as in `transformers`; unlike there, absent means sampling, as
    /// in vLLM.
    fn sampling(&self) -> SamplingParams {
        let defaults = SamplingParams::default();
        let temperature = match (self.do_sample, self.temperature) {
            (Some(false), _) => 0.0,
            (_, Some(temperature)) => temperature,
            (_, None) => 1.0,
        };
        SamplingParams {
            temperature,
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            ..defaults
        }
    }
}

impl ServedModel {
    /// Loads a model directory in Hugging Face layout, or a GGUF file, to compute on `device` in
    /// f32. Blocks for as long as the weights take.
    ///
    /// # Errors
    /// Names the file that is missing or wrong.
    pub fn load(path: &Path, device: &Device) -> Result<Self, Error> {
        Self::read(&ModelFiles::open(path)?, device)
    }

    /// As [`load`](Self::load), of files that are open; with the base hash if they
    /// [hash](ModelFiles::hashing).
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn read(files: &ModelFiles, device: &Device) -> Result<Self, Error> {
        Self::new(checkpoint::load_model(files, device)?)
    }

    /// As [`read`](Self::read), packed for the CPU in a type of weights.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn read_packed(files: &ModelFiles, weights: WeightType) -> Result<Self, Error> {
        Self::new(checkpoint::load_packed_model(files, weights)?)
    }

    fn new(loaded: LoadedModel) -> Result<Self, Error> {
        let dir = &loaded.dir;
        let path = dir.join("tokenizer.json");
        let tokenizer = load_tokenizer(&path).map_err(|source| Error::File {
            action: "read",
            path: path.display().to_string(),
            source,
        })?;
        let generation = generation_config(&dir.join("generation_config.json"))?;
        let name = dir.canonicalize().unwrap_or_else(|_| dir.clone());
        let name = name.file_name().unwrap_or_default().to_string_lossy();
        let mut info = ModelInfo::new(
            &name,
            &loaded.config,
            loaded.scone.as_ref(),
            tokenizer,
            loaded.tokenizer_hash.unwrap_or_default(),
        );
        info.base_hash = loaded.base_hash;
        info.bos_token_id = generation.bos_token_id.or(info.bos_token_id);
        match &generation.eos_token_id {
            Some(OneOrMany::One(id)) => info.eos_token_ids = vec![*id],
            Some(OneOrMany::Many(ids)) => info.eos_token_ids.clone_from(ids),
            None => {}
        }
        info.defaults = Defaults {
            sampling: generation.sampling(),
            max_new_tokens: generation.max_new_tokens,
        };
        info.fgrams = Some(dir.join("fgrams.bin")).filter(|path| path.is_file());
        info.check()?;
        info.read_chat_template(dir, None)?;
        Ok(Self {
            info,
            decoder: loaded.decoder,
        })
    }
}

impl ServedModel {
    /// Memory for keys and values, which bounds the context as well.
    ///
    /// # Errors
    /// When it is too little for any text, or there is not so much.
    pub fn new_pool(&mut self, bytes: u64, dtype: KvDtype) -> Result<KvPool, Error> {
        let block = self.decoder.kv_block_bytes(dtype) as u64;
        // Block numbers are u32; no machine has the memory for more.
        let blocks = (bytes / block).min(u64::from(u32::MAX)) as usize;
        if blocks == 0 {
            return Err(Error::Config(format!(
                "--kv-memory is {bytes} bytes; one block of {KV_BLOCK_POSITIONS} positions of this \
                 model takes {block}"
            )));
        }
        let positions = blocks.saturating_mul(KV_BLOCK_POSITIONS);
        if positions < self.info.context_tokens {
            self.info.context_tokens = positions;
            self.info.context_bound = Some("--kv-memory");
        }
        Ok(self.decoder.new_pool(dtype, blocks)?)
    }

    /// Computes a short text and a token after it, so that a device has loaded its kernels before the
    /// first request. The pool must not be in use.
    ///
    /// # Errors
    /// When the device cannot.
    pub fn warm_up(&self, pool: &mut KvPool) -> Result<(), Error> {
        let ids = [0; KV_BLOCK_POSITIONS / 2];
        let row = vec![0; RowDtype::F32.row_bytes(self.decoder.shape().hidden_size)];
        let row = EncodedRow {
            dtype: RowDtype::F32,
            bytes: &row,
        };
        let rows = [Some(row); KV_BLOCK_POSITIONS / 2];
        let (text, token) = ((0, ids.len()), (ids.len(), 1));
        for giving in [Giving::Best, Giving::Last] {
            for (held, count) in [text, token] {
                let segment = Segment {
                    blocks: &[0],
                    held,
                    token_ids: &ids[..count],
                    rows: &rows[..count],
                    samples: true,
                };
                self.decoder.step_giving(pool, &[segment], &[giving])?;
            }
        }
        Ok(())
    }
}

fn generation_config(path: &Path) -> Result<GenerationConfig, Error> {
    let wrong = |source: Box<dyn std::error::Error + Send + Sync>| Error::File {
        action: "read",
        path: path.display().to_string(),
        source,
    };
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| wrong(error.into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(GenerationConfig::default())
        }
        Err(error) => Err(wrong(error.into())),
    }
}

impl ModelInfo {
    /// Facts from a model's configs, with sampling defaults of our own.
    pub fn new(
        name: &str,
        config: &ModelConfig,
        scone: Option<&SconeConfig>,
        tokenizer: Tokenizer,
        tokenizer_hash: String,
    ) -> Self {
        Self {
            name: name.to_owned(),
            vocab_size: config.vocab_size(),
            context_tokens: config.max_positions(),
            context_bound: None,
            dim: config.hidden_size(),
            max_n: scone.map(|scone| scone.max_n),
            bos_token_id: config.bos_token_id(),
            eos_token_ids: config.eos_token_ids().to_vec(),
            longest_token: longest_token(&tokenizer),
            tokenizer: Arc::new(tokenizer),
            tokenizer_hash,
            tokenizer_config: serde_json::Value::Object(serde_json::Map::new()),
            chat_template: None,
            model_hash: scone.map(|scone| scone.model_hash.clone()),
            base_hash: None,
            defaults: Defaults::default(),
            fgrams: None,
        }
    }

    /// Reads tokenizer_config.json and the chat template of a model directory, or that of `file`.
    ///
    /// # Errors
    /// Names the file that is wrong.
    pub fn read_chat_template(&mut self, dir: &Path, file: Option<&Path>) -> Result<(), Error> {
        let text = |id: Option<&u32>| id.and_then(|&id| self.tokenizer.id_to_token(id));
        let tokens = [
            ("bos_token", text(self.bos_token_id.as_ref())),
            ("eos_token", text(self.eos_token_ids.first())),
        ];
        let tokens = tokens.into_iter();
        let tokens = tokens.filter_map(|(name, token)| Some((name.to_owned(), token?)));
        let (config, template) = chat::load(dir, file, tokens.collect())?;
        self.tokenizer_config = config;
        self.chat_template = template.map(Arc::new);
        Ok(())
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// When the model has no chat template, or the template refuses the conversation.
    pub fn render(&self, conversation: &Conversation) -> Result<String, Error> {
        let refused = |problem: String| Error::InvalidField {
            field: "messages",
            problem,
        };
        let Some(template) = &self.chat_template else {
            return Err(refused(format!(
                "cannot be used: the model {} has no chat template (neither chat_template.jinja \
                 nor chat_template in tokenizer_config.json, nor --chat-template)",
                self.name
            )));
        };
        if conversation.messages.is_empty() {
            return Err(refused("are empty; at least one is needed".to_owned()));
        }
        template.render(conversation).map_err(refused)
    }

    /// What the files cannot promise one another.
    fn check(&self) -> Result<(), Error> {
        if self.context_tokens < 2 {
            let got = self.context_tokens;
            return Err(Error::Config(format!(
                "the model's context is {got} tokens; at least 2 are needed to generate"
            )));
        }
        let special = self.bos_token_id.iter().chain(&self.eos_token_ids);
        for id in special {
            if *id as usize >= self.vocab_size {
                let vocab_size = self.vocab_size;
                return Err(Error::Config(format!(
                    "the model's bos or eos token id {id} is not below its vocab_size {vocab_size}"
                )));
            }
        }
        self.defaults.sampling.validate(self.vocab_size)?;
        Ok(())
    }

    /// What a table must agree with.
    pub fn table_facts(&self) -> ModelFacts {
        ModelFacts {
            dim: self.dim as u32,
            vocab_size: self.vocab_size as u32,
            tokenizer_hash: self.tokenizer_hash.clone(),
            model_hash: self.model_hash.clone(),
            base_hash: self.base_hash.clone(),
        }
    }

    /// Token ids of a text; with `special`, the tokenizer adds its special tokens. Those written in
    /// the text are one id each in any case.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, Error> {
        let encoded = self.tokenizer.encode_fast(text, special);
        match encoded {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(Error::InvalidField {
                field: "text",
                problem: format!("cannot be tokenised: {error}"),
            }),
        }
    }

    /// Text of token ids.
    ///
    /// # Errors
    /// When the tokenizer cannot decode.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        Ok(Decode::decode(&*self.tokenizer, ids)?)
    }

    /// The text of token ids, special tokens as they are spelled.
    ///
    /// # Errors
    /// When the tokenizer cannot decode.
    pub fn spelled(&self, ids: &[u32]) -> Result<String, Error> {
        let text = (**self.tokenizer).decode(ids, false);
        Ok(text.map_err(|error| DecodeError(error.to_string()))?)
    }
}
