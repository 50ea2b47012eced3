//! One training step.

use std::time::Instant;

use anyhow::Result;

use super::batch::Batch;
use super::config::TrainingConfig;
use super::gradients::Gradients;
use super::optimizer::Optimizer;
use super::prepare::Prepared;
use super::ranks::{Ranks, own_part};
use super::report::Interval;

/// How a step went.
pub(super) enum Stepped {
    /// Parameters were updated.
    Done {
        /// Mean loss of the batch, all ranks' parts of it, nats a token.
        loss: f32,
        seconds: f64,
    },
    /// Nothing was changed, and why.
    Bad(String),
}

/// Trains on a batch, by its number, with a learning rate; a loss above `spike` must not count. Of
/// the batch this rank computes its part; how the step went is the same for all ranks.
pub(super) fn step(
    (training, ranks): (&TrainingConfig, &dyn Ranks),
    prepared: &mut Prepared,
    optimizer: &mut Optimizer,
    (batch, lr, spike): (u64, f64, f32),
    interval: &mut Interval,
) -> Result<Stepped> {
    let started = Instant::now();
    let starts = prepared.order.starts(batch);
    let own = &starts[own_part(ranks, starts.len())];
    let share = 1.0 / (training.accumulate * ranks.count()) as f32;
    let mut sum: Option<Gradients> = None;
    let mut loss = [0.0f32];
    for starts in own.chunks(own.len().div_ceil(training.accumulate)) {
        let (part_loss, gradients) =
            part(training, prepared, optimizer, (starts, share), interval)?;
        loss[0] += part_loss * share;
        match (&mut sum, gradients) {
            (_, None) => break,
            (Some(sum), Some(gradients)) => sum.add(&gradients)?,
            (none, gradients) => *none = gradients,
        }
    }
    // Before any gradient is sent, so that all ranks know of a loss that does not count.
    ranks.add_up(&mut loss)?;
    let [losses] = loss;
    if !losses.is_finite() {
        return Ok(Stepped::Bad(format!("the loss is {losses}")));
    }
    if losses > spike {
        return Ok(Stepped::Bad(format!(
            "the loss is {losses}, a spike above {spike}"
        )));
    }
    let backwarded = Instant::now();
    let Some(mut gradients) = sum else {
        return Ok(Stepped::Bad("the batch is empty".to_owned()));
    };
    gradients.add_up(ranks)?;
    let report = optimizer.apply(&gradients, lr)?;
    if !report.grad_norm.is_finite() {
        let norm = report.grad_norm;
        return Ok(Stepped::Bad(format!(
            "the gradient is not finite (norm {norm})"
        )));
    }
    interval.times.update += backwarded.elapsed();
    interval.grad_norm = report.grad_norm;
    Ok(Stepped::Done {
        loss: losses,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Loss of some windows, and their gradients times their share in the batch; none when the loss is not
/// finite.
fn part(
    training: &TrainingConfig,
    prepared: &Prepared,
    optimizer: &Optimizer,
    (starts, share): (&[usize], f32),
    interval: &mut Interval,
) -> Result<(f32, Option<Gradients>)> {
    let started = Instant::now();
    let vocab_size = prepared.model_config.vocab_size() as u32;
    let batch = Batch::new(
        &prepared.stream,
        starts,
        training.sequence_length,
        vocab_size,
    );
    let batched = Instant::now();
    let (loss, nodes) = prepared.network.loss_and_nodes(&batch)?;
    let value = loss.to_scalar::<f32>()?;
    let forwarded = Instant::now();
    interval.times.batch += batched - started;
    interval.times.forward += forwarded - batched;
    interval.positions += batch.targets.len();
    interval.nodes += nodes;
    if !value.is_finite() {
        return Ok((value, None));
    }
    let loss = match share {
        1.0 => loss,
        share => (loss * f64::from(share))?,
    };
    let gradients = Gradients::of(optimizer.vars(), &loss.backward()?)?;
    interval.times.backward += forwarded.elapsed();
    Ok((value, Some(gradients)))
}
