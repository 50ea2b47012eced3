//! Main model and f-gram model as one trainable network.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use candle_core::{Device, Tensor, Var};
use candle_nn::VarBuilder;
use scone_model::{
    Decoder, FgramModel, FgramModelConfig, ModelConfig, Parameters, Precision, PrefixTree,
    var_builder,
};

use super::batch::Batch;
use super::config::Trainable;
use super::control::Control;
use crate::embedding::Inputs;

/// Decoder and A over variables, or over plain tensors where they are not trained: those get no
/// gradient and no optimiser state, and gradients still pass through them.
#[derive(Debug)]
pub struct Network {
    decoder: Decoder,
    fgram_model: Option<FgramModel>,
    /// In place of A.
    control: Option<(Control, Weights)>,
    main: Weights,
    fgram: Weights,
}

/// The weights of one model by name.
#[derive(Debug, Default)]
struct Weights {
    trained: BTreeMap<String, Var>,
    frozen: Parameters,
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
        trainable: Trainable,
        device: &Device,
    ) -> Result<Self> {
        let embedding = config.token_embedding_name();
        let trained = |name: &str| match name == embedding {
            true => trainable.embeddings(),
            false => trainable.rest(),
        };
        let main = Weights::new(main, trained, device)?;
        let decoder = Decoder::load(config, main.builder(device)).context("main model")?;
        let (fgram_model, fgram) = match fgram {
            None => (None, Weights::default()),
            Some((shape, parameters)) => {
                let own = Weights::new(parameters, |_| trainable.fgram_model(), device)?;
                let model =
                    FgramModel::load(shape, config, own.builder(device)).context("f-gram model")?;
                (Some(model), own)
            }
        };
        Ok(Self {
            decoder,
            fgram_model,
            control: None,
            main,
            fgram,
        })
    }

    /// Takes the rows of a control where A's would be taken.
    ///
    /// # Errors
    /// When the device has not the memory.
    pub(super) fn with_control(mut self, control: Control, rows: &Parameters) -> Result<Self> {
        let device = self.decoder.token_embedding().device();
        let rows = Weights::new(rows, |_| true, device)?;
        self.control = Some((control, rows));
        Ok(self)
    }

    /// Computes blocks again for the backward pass rather than keep what is in them.
    ///
    /// # Errors
    /// On a path that cannot.
    pub fn recompute_blocks(&mut self) -> Result<()> {
        self.decoder.recompute_blocks()?;
        if let Some(model) = &mut self.fgram_model {
            model.recompute_blocks()?;
        }
        Ok(())
    }

    /// Rounds the factors of products, as [`Decoder::train_with`] says.
    ///
    /// # Errors
    /// On a path that cannot.
    pub fn train_with(&mut self, precision: Precision) -> Result<()> {
        self.decoder.train_with(precision)?;
        if let Some(model) = &mut self.fgram_model {
            model.train_with(precision)?;
        }
        Ok(())
    }

    /// The main model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The parameters that are trained; names of the main model start with `model/`, of A with
    /// `fgram_model/`.
    pub fn vars(&self) -> BTreeMap<String, Var> {
        let control = self.control.iter().map(|(_, rows)| ("control", rows));
        [("model", &self.main), ("fgram_model", &self.fgram)]
            .into_iter()
            .chain(control)
            .flat_map(|(prefix, own)| {
                let named = own.trained.iter();
                named.map(move |(name, var)| (format!("{prefix}/{name}"), var.clone()))
            })
            .collect()
    }

    /// The weights of the main model and of A as they are now.
    pub fn parameters(&self) -> (Parameters, Parameters) {
        (self.main.parameters(), self.fgram.parameters())
    }

    /// Input embeddings `(N, D)`; gradients reach T, also through A, and A.
    ///
    /// # Errors
    /// When there are f-grams but no A, or a tensor operation fails.
    pub fn embed(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let (rows, _) = self.rows_and_nodes(&inputs.fgrams)?;
        Ok(self
            .decoder
            .input_embeddings(rows.as_ref(), &inputs.index)?)
    }

    /// A of each f-gram, `(F, D)`, in their order; `None` without f-grams.
    ///
    /// # Errors
    /// As [`Network::embed`].
    pub fn fgram_rows(&self, fgrams: &[&[u32]]) -> Result<Option<Tensor>> {
        Ok(self.rows_and_nodes(fgrams)?.0)
    }

    /// Rows of f-grams, and the number of prefixes that A computed for them.
    fn rows_and_nodes(&self, fgrams: &[&[u32]]) -> Result<(Option<Tensor>, usize)> {
        if fgrams.is_empty() {
            return Ok((None, 0));
        }
        if let Some((control, rows)) = &self.control {
            let rows = rows.all(|var| var.as_tensor().clone());
            return Ok((Some(control.rows(&self.decoder, &rows, fgrams)?), 0));
        }
        let model = self
            .fgram_model
            .as_ref()
            .context("f-grams in the batch but no f-gram model")?;
        let tree = Arc::new(PrefixTree::new(fgrams)?);
        let rows = model.forward_tree(self.decoder.token_embedding(), &tree)?;
        Ok((Some(rows), tree.len()))
    }

    /// Mean next-token loss of a batch, in nats.
    ///
    /// # Errors
    /// As [`Network::embed`].
    pub fn loss(&self, batch: &Batch<'_>) -> Result<Tensor> {
        Ok(self.loss_and_nodes(batch)?.0)
    }

    /// [`loss`](Self::loss), and the number of f-gram prefixes that A computed for it.
    ///
    /// # Errors
    /// As [`Network::embed`].
    pub fn loss_and_nodes(&self, batch: &Batch<'_>) -> Result<(Tensor, usize)> {
        let (rows, nodes) = self.rows_and_nodes(&batch.inputs.fgrams)?;
        let index = &batch.inputs.index;
        let embeds = self.decoder.input_embeddings(rows.as_ref(), index)?;
        let width = embeds.dim(1)?;
        let embeds = embeds.reshape((batch.sequences, batch.length, width))?;
        let hidden = self.decoder.forward(&embeds)?;
        Ok((self.decoder.loss(&hidden, &batch.targets)?, nodes))
    }
}

impl Weights {
    fn new(
        parameters: &Parameters,
        trained: impl Fn(&str) -> bool,
        device: &Device,
    ) -> Result<Self> {
        let mut own = Self::default();
        for (name, tensor) in parameters {
            let tensor = tensor.to_device(device)?;
            match trained(name) {
                true => {
                    let var = Var::from_tensor(&tensor)?;
                    own.trained.insert(name.clone(), var);
                }
                false => {
                    own.frozen.insert(name.clone(), tensor);
                }
            }
        }
        Ok(own)
    }

    /// A builder over the variables themselves, so that the model follows them.
    fn builder(&self, device: &Device) -> VarBuilder<'static> {
        var_builder(&self.all(|var| var.as_tensor().clone()), device)
    }

    fn parameters(&self) -> Parameters {
        self.all(Var::as_detached_tensor)
    }

    fn all(&self, tensor: impl Fn(&Var) -> Tensor) -> Parameters {
        let mut all = self.frozen.clone();
        let trained = self.trained.iter();
        all.extend(trained.map(|(name, var)| (name.clone(), tensor(var))));
        all
    }
}
