//! Training checkpoints: everything a run needs to go on as if it had never stopped.
//!
//! `DIR/checkpoints/step-N/` holds `parameters.safetensors`, `optimizer.safetensors` (both moments
//! of every parameter) and `state.json`. It is written under another name, synced and renamed, so a
//! directory of that name is whole. The last `KEEP` are kept. `best-N/` beside them holds the parameters
//! of the step that scored best on held-out text, where a run keeps them.

mod state;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{Device, Tensor, Var};

use crate::training::optimizer::{Moments, Optimizer};
use state::FORMAT_VERSION;
pub use state::{Best, InputHashes, State};

/// Checkpoints kept; the one before the newest is for the day the newest turns out to be bad.
const KEEP: usize = 2;
const PARAMETERS: &str = "parameters.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// A checkpoint read back.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where it came from.
    pub path: PathBuf,
    /// state.json.
    pub state: State,
    parameters: HashMap<String, Tensor>,
    moments: BTreeMap<String, Moments>,
}

/// The checkpoints of one run.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    dir: PathBuf,
    device: Device,
}

impl Checkpoints {
    /// Those under `out`, which need not exist yet; they are read to `device`.
    pub fn new(out: &Path, device: &Device) -> Self {
        Self {
            dir: out.join("checkpoints"),
            device: device.clone(),
        }
    }

    /// The newest one that reads back whole; `None` when there is none.
    ///
    /// # Errors
    /// When the directory cannot be listed, or there are checkpoints but none is readable: going
    /// on from the start would overwrite a run somebody may want to save.
    pub fn newest(&self) -> Result<Option<Checkpoint>> {
        let steps = self.steps()?;
        let mut last_error = None;
        for &step in steps.iter().rev() {
            match self.read(step) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(error) => {
                    tracing::warn!(
                        step,
                        error = format!("{error:#}"),
                        "checkpoint not readable"
                    );
                    last_error = Some(error);
                }
            }
        }
        match last_error {
            None => Ok(None),
            Some(error) => Err(error.context(format!(
                "no checkpoint in {} is readable; move the directory away to start anew",
                self.dir.display()
            ))),
        }
    }

    /// Writes the checkpoint of `state.step` and drops those before the last `KEEP`.
    ///
    /// # Errors
    /// Names the file that could not be written.
    pub fn write(&self, state: &State, optimizer: &Optimizer) -> Result<PathBuf> {
        let target = self.path(state.step);
        let partial = self.dir.join(format!(".step-{}.partial", state.step));
        write_files(&partial, state, optimizer)
            .with_context(|| format!("cannot write the checkpoint {}", partial.display()))?;
        if target.exists() {
            fs::remove_dir_all(&target)?;
        }
        scone_files::publish(&partial, &target)?;
        self.prune()?;
        Ok(target)
    }

    /// Keeps the parameters of `step`, the best so far. Those of an earlier step stay until
    /// [`keep_best`](Self::keep_best): a run that goes on from a checkpoint may need them.
    ///
    /// # Errors
    /// Names the file that could not be written.
    pub fn write_best(&self, step: u64, optimizer: &Optimizer) -> Result<()> {
        let target = self.best_path(step);
        if target.exists() {
            fs::remove_dir_all(&target)?;
        }
        let partial = self.dir.join(format!(".best-{step}.partial"));
        let write = || -> Result<()> {
            if partial.exists() {
                fs::remove_dir_all(&partial)?;
            }
            fs::create_dir_all(&partial)?;
            write_tensors(&partial.join(PARAMETERS), &parameters(optimizer))?;
            Ok(scone_files::publish(&partial, &target)?)
        };
        write().with_context(|| format!("cannot write the checkpoint {}", target.display()))
    }

    /// Drops the parameters of all best steps but this one.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn keep_best(&self, best: Option<u64>) -> Result<()> {
        for step in self.numbered("best-")? {
            if Some(step) != best {
                fs::remove_dir_all(self.best_path(step))?;
            }
        }
        Ok(())
    }

    /// Puts the parameters of the best `step` back; moments stay as they are.
    ///
    /// # Errors
    /// When they cannot be read or do not fit.
    pub fn restore_best(&self, step: u64, optimizer: &Optimizer) -> Result<()> {
        let path = self.best_path(step).join(PARAMETERS);
        restore_parameters(&path, read_tensors(&path, &self.device)?, optimizer)
    }

    fn best_path(&self, step: u64) -> PathBuf {
        self.dir.join(format!("best-{step}"))
    }

    fn path(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step}"))
    }

    /// Steps with a checkpoint, ascending.
    fn steps(&self) -> Result<Vec<u64>> {
        self.numbered("step-")
    }

    /// The numbers behind `prefix` in names of the directory, ascending.
    fn numbered(&self, prefix: &str) -> Result<Vec<u64>> {
        let mut steps = Vec::new();
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(steps),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot list {}", self.dir.display()));
            }
        };
        for entry in entries {
            let name = entry?.file_name();
            let step = name
                .to_str()
                .and_then(|n| n.strip_prefix(prefix)?.parse::<u64>().ok());
            steps.extend(step);
        }
        steps.sort_unstable();
        Ok(steps)
    }

    fn prune(&self) -> Result<()> {
        let steps = self.steps()?;
        for &step in &steps[..steps.len().saturating_sub(KEEP)] {
            fs::remove_dir_all(self.path(step))?;
        }
        Ok(())
    }

    fn read(&self, step: u64) -> Result<Checkpoint> {
        let path = self.path(step);
        let text = fs::read_to_string(path.join(STATE))
            .with_context(|| format!("cannot read {}", path.join(STATE).display()))?;
        let state: State = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged", path.join(STATE).display()))?;
        ensure!(
            state.format_version == FORMAT_VERSION,
            "checkpoint {} has format version {}, this trainer reads {FORMAT_VERSION}",
            path.display(),
            state.format_version
        );
        ensure!(
            state.step == step,
            "{} says it is of step {}",
            path.display(),
            state.step
        );
        let parameters = read_tensors(&path.join(PARAMETERS), &self.device)?;
        let moments = read_moments(&path.join(OPTIMIZER), &self.device)?;
        Ok(Checkpoint {
            path,
            state,
            parameters,
            moments,
        })
    }
}

impl Checkpoint {
    /// Puts parameters and moments back.
    ///
    /// # Errors
    /// When a parameter is missing or has another shape.
    pub fn restore(self, optimizer: &mut Optimizer) -> Result<State> {
        restore_parameters(&self.path, self.parameters, optimizer)?;
        optimizer.restore(self.state.step, self.moments)?;
        Ok(self.state)
    }
}

fn restore_parameters(
    path: &Path,
    mut saved: HashMap<String, Tensor>,
    optimizer: &Optimizer,
) -> Result<()> {
    for (name, var) in optimizer.vars() {
        let tensor = saved
            .remove(name)
            .with_context(|| format!("{} lacks the parameter {name}", path.display()))?;
        restore_one(name, var, &tensor)?;
    }
    if let Some(name) = saved.keys().min() {
        bail!("{} has an unknown parameter {name}", path.display());
    }
    Ok(())
}

fn restore_one(name: &str, var: &Var, saved: &Tensor) -> Result<()> {
    ensure!(
        saved.shape() == var.shape() && saved.dtype() == var.dtype(),
        "parameter {name} is {:?} in the checkpoint and {:?} in the model",
        saved.shape(),
        var.shape()
    );
    Ok(var.set(saved)?)
}

fn write_files(dir: &Path, state: &State, optimizer: &Optimizer) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::create_dir_all(dir)?;
    write_tensors(&dir.join(PARAMETERS), &parameters(optimizer))?;
    let mut moments = HashMap::new();
    for (name, own) in optimizer.moments()? {
        moments.insert(format!("first.{name}"), own.first);
        if let Some(second) = own.second {
            moments.insert(format!("second.{name}"), second);
        }
    }
    write_tensors(&dir.join(OPTIMIZER), &moments)?;
    // Syncs the directory as well, with all three names in it.
    Ok(scone_files::write_atomic(
        &dir.join(STATE),
        &serde_json::to_vec(state)?,
    )?)
}

fn parameters(optimizer: &Optimizer) -> HashMap<String, Tensor> {
    let vars = optimizer.vars().iter();
    vars.map(|(name, var)| (name.clone(), var.as_detached_tensor()))
        .collect()
}

fn write_tensors(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<()> {
    candle_core::safetensors::save(tensors, path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(scone_files::Error::at("sync", path))?;
    Ok(())
}

fn read_tensors(path: &Path, device: &Device) -> Result<HashMap<String, Tensor>> {
    candle_core::safetensors::load(path, device)
        .with_context(|| format!("cannot read {}", path.display()))
}

fn read_moments(path: &Path, device: &Device) -> Result<BTreeMap<String, Moments>> {
    let mut tensors = read_tensors(path, device)?;
    let names: Vec<String> = tensors
        .keys()
        .filter_map(|key| key.strip_prefix("first."))
        .map(str::to_owned)
        .collect();
    let mut moments = BTreeMap::new();
    for name in names {
        let mut take = |kind: &str| tensors.remove(&format!("{kind}.{name}"));
        let first = take("first");
        let own = Moments {
            first: first.with_context(|| format!("{} lacks first.{name}", path.display()))?,
            second: take("second"),
        };
        moments.insert(name, own);
    }
    Ok(moments)
}

#[cfg(test)]
mod tests;
