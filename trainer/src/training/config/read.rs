//! From a YAML file and overrides to a checked config.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use scone_model::{DeviceChoice, Dtype};
use serde::de::DeserializeOwned;
use serde_yaml_ng::{Mapping, Value};

use super::schema::TrainConfig;
use super::validate::{self, Mistakes};
use super::{overrides, presets};

/// What [`Sections`] knows, for messages.
const KNOWN: &str = "data, tokenizer, fgrams, max_fgrams, preset, base, trainable, control, \
     model, fgram_model, training, optimizer, output, device, dtype, tf32";

impl TrainConfig {
    /// Reads `path`, applies `overrides` (`optimizer.lr=3e-3`) and checks every field.
    ///
    /// # Errors
    /// Names the file and every key that is unknown, missing, of the wrong type or out of range.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the training config {}", path.display()))?;
        Self::parse(&text, overrides).with_context(|| format!("in {}", path.display()))
    }

    /// [`TrainConfig::load`] on the text of a file.
    ///
    /// # Errors
    /// As [`TrainConfig::load`].
    pub fn parse(text: &str, overrides: &[String]) -> Result<Self> {
        let value: Value = serde_yaml_ng::from_str(text).context("not valid YAML")?;
        let Value::Mapping(mut root) = value else {
            bail!("the training config must be a mapping of keys")
        };
        let mut mistakes = Mistakes::default();
        if let Err(error) = presets::apply(&mut root, overrides) {
            mistakes.0.push(format!("{error:#}"));
        }
        for spec in overrides {
            if let Err(error) = overrides::apply(&mut root, spec) {
                mistakes.0.push(format!("{error:#}"));
            }
        }
        // It stands in the values now.
        root.remove("preset");
        let config = read(Sections {
            root,
            mistakes: &mut mistakes,
        });
        match (config, mistakes.0.as_slice()) {
            (Some(config), []) => Ok(config),
            (_, [one]) => bail!("{one}"),
            (_, all) => bail!("{} mistakes:\n- {}", all.len(), all.join("\n- ")),
        }
    }

    /// The effective config as YAML, every default written out.
    ///
    /// # Errors
    /// When a value has no form in YAML.
    pub fn to_yaml(&self) -> Result<String> {
        serde_yaml_ng::to_string(self).context("cannot write the config as YAML")
    }
}

/// Takes the sections one by one, so that a mistake names the section it is in; `None` when one is
/// missing, whatever else is wrong.
fn read(mut sections: Sections<'_>) -> Option<TrainConfig> {
    let data = sections.required("data", validate::data);
    let base: Option<PathBuf> = sections.optional("base", |_, _| {});
    let fresh = base.is_none();
    // A base brings its own.
    let tokenizer = match fresh {
        true => sections.required("tokenizer", |_, _| {}),
        false => sections.optional("tokenizer", |_, _| {}),
    };
    let fgrams = sections.optional("fgrams", |_, _| {});
    let max_fgrams = sections.optional("max_fgrams", validate::max_fgrams);
    let trainable = sections.optional("trainable", |_, _| {});
    let control = sections.optional("control", validate::control);
    let model = match fresh {
        true => sections.required("model", validate::model),
        false => sections.optional("model", validate::model),
    };
    let fgram_model = sections.optional("fgram_model", validate::fgram_model);
    let training = sections.required("training", validate::training);
    let optimizer = sections.optional("optimizer", validate::optimizer);
    let output = sections.optional("output", |_, _| {});
    let device = sections.named("device");
    let dtype = sections.named("dtype");
    let tf32 = sections.optional("tf32", |_, _| {});
    let mistakes = sections.refuse_others();
    if fresh && (tokenizer.is_none() || model.is_none()) {
        return None;
    }
    let config = TrainConfig {
        data: data?,
        tokenizer,
        fgrams,
        max_fgrams,
        base,
        trainable: trainable.unwrap_or_default(),
        control,
        model,
        fgram_model: fgram_model.unwrap_or_default(),
        training: training?,
        optimizer: optimizer.unwrap_or_default(),
        output: output.unwrap_or_default(),
        device: device.unwrap_or(DeviceChoice::Cpu),
        dtype: dtype.unwrap_or(Dtype::F32),
        tf32: tf32.unwrap_or(false),
    };
    validate::together(&config, mistakes);
    Some(config)
}

/// The keys of the file that are not read yet, and what was wrong with the others.
struct Sections<'a> {
    root: Mapping,
    mistakes: &'a mut Mistakes,
}

impl<'a> Sections<'a> {
    /// Reads and checks `key`; `None` when it is absent, null or not readable.
    fn optional<T: DeserializeOwned>(
        &mut self,
        key: &str,
        check: impl FnOnce(&T, &mut Mistakes),
    ) -> Option<T> {
        let value = self.root.remove(key).filter(|value| !value.is_null())?;
        match serde_yaml_ng::from_value(value) {
            Ok(section) => {
                check(&section, self.mistakes);
                Some(section)
            }
            Err(error) => {
                self.mistakes.0.push(format!("key `{key}`: {error}"));
                None
            }
        }
    }

    fn required<T: DeserializeOwned>(
        &mut self,
        key: &str,
        check: impl FnOnce(&T, &mut Mistakes),
    ) -> Option<T> {
        if self.root.get(key).is_none_or(Value::is_null) {
            self.mistakes.0.push(format!("missing key `{key}`"));
        }
        self.optional(key, check)
    }

    /// Reads a value that is written as one word.
    fn named<T: FromStr<Err: Display>>(&mut self, key: &str) -> Option<T> {
        let text: String = self.optional(key, |_, _| {})?;
        let value = text.parse();
        value
            .map_err(|error| self.mistakes.0.push(format!("key `{key}`: {error}")))
            .ok()
    }

    /// Every key that is left is unknown.
    fn refuse_others(self) -> &'a mut Mistakes {
        for key in self.root.keys() {
            let key = key.as_str().unwrap_or("?");
            self.mistakes
                .0
                .push(format!("unknown key `{key}`; known: {KNOWN}"));
        }
        self.mistakes
    }
}
