//! The fields of a request, taken out one by one so that what is wrong is named.

use std::collections::HashMap;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::Refusal;
use crate::request::Draft;

/// Fields that nobody took yet. What is left in the end is unknown here, and ignored.
#[derive(Debug)]
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn new(map: Map<String, Value>) -> Self {
        Self(map)
    }

    /// A field's value; `None` when it is absent or null.
    ///
    /// # Errors
    /// When it has another type.
    pub(super) fn take<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<T>, Refusal> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match T::deserialize(value) {
                Ok(value) => Ok(Some(value)),
                Err(error) => Err(Refusal::field(name, format!("cannot be read: {error}"))),
            },
        }
    }

    /// Whether a field is there, and not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| !value.is_null())
    }

    /// A switch; off when it is absent.
    pub(super) fn is_set(&mut self, name: &'static str) -> Result<bool, Refusal> {
        Ok(self.take(name)?.unwrap_or(false))
    }

    /// Refuses a field that asks for what is not possible here.
    pub(super) fn refuse(&mut self, name: &'static str, problem: &str) -> Result<(), Refusal> {
        match self.0.remove(name) {
            None | Some(Value::Null | Value::Bool(false)) => Ok(()),
            Some(_) => Err(Refusal::field(name, problem)),
        }
    }

    /// The part of a draft that all ways to generate share.
    pub(super) fn draft(&mut self) -> Result<Draft, Refusal> {
        let n: Option<u32> = self.take("n")?;
        if let Some(best_of) = self.take::<u32>("best_of")?
            && best_of != n.unwrap_or(1)
        {
            let problem = format!("is {best_of}; every completion is returned, so only n may be");
            return Err(Refusal::field("best_of", problem));
        }
        self.refuse("use_beam_search", "is not possible here")?;
        if let Some(format) = self.take::<Value>("response_format")?
            && format["type"] != "text"
        {
            return Err(Refusal::field(
                "response_format",
                "is not possible here; only {\"type\": \"text\"} is",
            ));
        }
        Ok(Draft {
            n,
            min_tokens: self.take("min_tokens")?,
            temperature: self.take("temperature")?,
            top_k: self.top_k()?,
            top_p: self.take("top_p")?,
            min_p: self.take("min_p")?,
            repetition_penalty: self.take("repetition_penalty")?,
            presence_penalty: self.take("presence_penalty")?,
            frequency_penalty: self.take("frequency_penalty")?,
            stop: self.stop()?,
            stop_token_ids: self.take("stop_token_ids")?.unwrap_or_default(),
            ignore_eos: self.take("ignore_eos")?,
            seed: self.seed()?,
            logit_bias: self.logit_bias()?,
            add_special_tokens: self.take("add_special_tokens")?,
            ..Draft::default()
        })
    }

    /// Others say -1 for all.
    fn top_k(&mut self) -> Result<Option<u32>, Refusal> {
        let top_k: Option<i64> = self.take("top_k")?;
        top_k
            .map(|k| match (k, u32::try_from(k)) {
                (-1, _) => Ok(0),
                (_, Ok(k)) => Ok(k),
                (k, Err(_)) => Err(Refusal::field(
                    "top_k",
                    format!(
                        "is {k}; allowed is 0 or -1, for all, and up to {}",
                        u32::MAX
                    ),
                )),
            })
            .transpose()
    }

    /// One or several.
    fn stop(&mut self) -> Result<Vec<String>, Refusal> {
        match self.0.get("stop") {
            Some(Value::String(_)) => Ok(self.take("stop")?.into_iter().collect()),
            _ => Ok(self.take("stop")?.unwrap_or_default()),
        }
    }

    /// Seeds are 64 bits; a negative one is as good as another.
    fn seed(&mut self) -> Result<Option<u64>, Refusal> {
        match self.0.get("seed").and_then(Value::as_i64) {
            Some(seed) => {
                self.0.remove("seed");
                Ok(Some(seed as u64))
            }
            None => self.take("seed"),
        }
    }

    /// JSON has token ids as names.
    fn logit_bias(&mut self) -> Result<HashMap<u32, f32>, Refusal> {
        let named: HashMap<String, f32> = self.take("logit_bias")?.unwrap_or_default();
        let by_id = named.into_iter().map(|(id, bias)| match id.parse() {
            Ok(id) => Ok((id, bias)),
            Err(_) => {
                let id: String = id.chars().take(32).collect();
                let problem = format!("has the name {id:?}, which is no token id");
                Err(Refusal::field("logit_bias", problem))
            }
        });
        by_id.collect()
    }
}
