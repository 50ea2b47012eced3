//! What becomes of a step that must not count.

use anyhow::{Result, ensure};
use serde_json::json;

use super::Run;

impl Run<'_> {
    /// Leaves out the batch of the step that was tried, and returns to the last checkpoint: what
    /// came before the bad step may have led to it. Without a checkpoint only the batch is left out.
    pub(super) fn go_back(&mut self, reason: &str) -> Result<()> {
        let (batch, failed) = (self.state.batch(), self.state.step);
        let skipped = self.state.skipped.len() as u64;
        ensure!(
            skipped < self.config.training.max_skips,
            "step {failed}: {reason}, after {skipped} batches were left out \
             (training.max_skips = {}): {}",
            self.config.training.max_skips,
            self.advice()
        );
        if let Some(checkpoint) = self.checkpoints.newest()? {
            let skipped = std::mem::take(&mut self.state.skipped);
            self.state = checkpoint.restore(&mut self.optimizer)?;
            self.state.config = self.config.clone();
            self.state.skipped = skipped;
        }
        self.state.skipped.push(batch);
        self.state.skipped.sort_unstable();
        let Some(log) = &mut self.log else {
            return Ok(());
        };
        log.rewind(self.state.step)?;
        tracing::warn!(
            reason,
            failed,
            batch,
            back_to = self.state.step,
            "left out a batch"
        );
        // Under the step after the one it went back to: a run that goes on from there comes to it
        // again, one that goes on from a later checkpoint keeps it.
        log.write(&json!({
            "step": self.state.step + 1,
            "skipped_batch": batch,
            "at_step": failed + 1,
            "back_to": self.state.step,
            "reason": reason,
        }))
    }

    /// What to do when training diverged.
    fn advice(&self) -> String {
        format!(
            "training diverged; start again in another --out directory with a lower optimizer.lr \
             ({}), a longer optimizer.warmup_steps ({}) or a smaller optimizer.clip ({}); the \
             checkpoints in {} are kept",
            self.config.optimizer.lr,
            self.config.optimizer.warmup_steps,
            self.config.optimizer.clip,
            self.out.display()
        )
    }
}
