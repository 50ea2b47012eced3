//! Main model and f-gram model as one trainable network.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use candle_core::{Device, Tensor, Var};
use candle_nn::VarBuilder;
use scone_model::{
    Decoder, FgramModel, FgramModelConfig, ModelConfig, Parameters, PrefixTree, var_builder,
};

use super::batch::Batch;
use crate::embedding::Inputs;

/// Decoder and A over variables.
#[derive(Debug)]
pub struct Network {
    decoder: Decoder,
    fgram_model: Option<FgramModel>,
    main: BTreeMap<String, Var>,
    fgram: BTreeMap<String, Var>,
}

impl Network {
    /// Builds the network on `device` from initial weights; `fgram` absent: a plain model.
    ///
    /// # Errors
    /// When weights and config do not fit.
    pub fn new(
        config: &ModelConfig,
        main: &Parameters,
        fgram: Option<(&FgramModelConfig, &Parameters)>,
        device: &Device,
    ) -> Result<Self> {
        let main = variables(main, device)?;
        let decoder = Decoder::load(config, builder(&main, device)).context("main model")?;
        let (fgram_model, fgram) = match fgram {
            None => (None, BTreeMap::new()),
            Some((shape, parameters)) => {
                let vars = variables(parameters, device)?;
                let model = FgramModel::load(shape, config, builder(&vars, device))
                    .context("f-gram model")?;
                (Some(model), vars)
            }
        };
        Ok(Self {
            decoder,
            fgram_model,
            main,
            fgram,
        })
    }

    /// The main model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// All parameters; names of the main model start with `model/`, of A with `fgram_model/`.
    pub fn vars(&self) -> BTreeMap<String, Var> {
        let main = self
            .main
            .iter()
            .map(|(name, var)| (format!("model/{name}"), var.clone()));
        let fgram = self
            .fgram
            .iter()
            .map(|(name, var)| (format!("fgram_model/{name}"), var.clone()));
        main.chain(fgram).collect()
    }

    /// The weights of the main model and of A as they are now.
    pub fn parameters(&self) -> (Parameters, Parameters) {
        let detached = |vars: &BTreeMap<String, Var>| {
            vars.iter()
                .map(|(name, var)| (name.clone(), var.as_detached_tensor()))
                .collect()
        };
        (detached(&self.main), detached(&self.fgram))
    }

    /// Input embeddings `(N, D)`; gradients reach T, also through A, and A.
    ///
    /// # Errors
    /// When there are f-grams but no A, or a tensor operation fails.
    pub fn embed(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let rows = self.fgram_rows(&inputs.fgrams)?;
        Ok(self
            .decoder
            .input_embeddings(rows.as_ref(), &inputs.index)?)
    }

    /// A of each f-gram, `(F, D)`, in their order; `None` without f-grams.
    ///
    /// # Errors
    /// As [`Network::embed`].
    pub fn fgram_rows(&self, fgrams: &[&[u32]]) -> Result<Option<Tensor>> {
        if fgrams.is_empty() {
            return Ok(None);
        }
        let model = self
            .fgram_model
            .as_ref()
            .context("f-grams in the batch but no f-gram model")?;
        let tree = Arc::new(PrefixTree::new(fgrams)?);
        Ok(Some(
            model.forward_tree(self.decoder.token_embedding(), &tree)?,
        ))
    }

    /// Mean next-token loss of a batch, in nats.
    ///
    /// # Errors
    /// As [`Network::embed`].
    pub fn loss(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let embeds = self.embed(&batch.inputs)?;
        let width = embeds.dim(1)?;
        let embeds = embeds.reshape((batch.sequences, batch.length, width))?;
        let hidden = self.decoder.forward(&embeds)?;
        Ok(self.decoder.loss(&hidden, &batch.targets)?)
    }
}

fn variables(parameters: &Parameters, device: &Device) -> Result<BTreeMap<String, Var>> {
    let one = |(name, tensor): (&String, &Tensor)| {
        Ok((name.clone(), Var::from_tensor(&tensor.to_device(device)?)?))
    };
    parameters.iter().map(one).collect()
}

/// A builder over the variables themselves, so that the model follows them.
fn builder(vars: &BTreeMap<String, Var>, device: &Device) -> VarBuilder<'static> {
    let tensors = vars
        .iter()
        .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
        .collect();
    var_builder(&tensors, device)
}
