//! One training step.

use std::time::Instant;

use anyhow::Result;

use super::batch::Batch;
use super::config::TrainingConfig;
use super::gradients::Gradients;
use super::optimizer::Optimizer;
use super::prepare::Prepared;
use super::report::Interval;

/// How a step went.
pub(super) enum Stepped {
    /// Parameters were updated.
    Done {
        /// Mean loss of the batch, nats a token.
        loss: f32,
        seconds: f64,
    },
    /// Nothing was changed, and why.
    Bad(String),
}

/// Trains on a batch, by its number, with a learning rate; a loss above `spike` must not count.
pub(super) fn step(
    training: &TrainingConfig,
    prepared: &mut Prepared,
    optimizer: &mut Optimizer,
    (batch, lr, spike): (u64, f64, f32),
    interval: &mut Interval,
) -> Result<Stepped> {
    let started = Instant::now();
    let starts = prepared.order.starts(batch);
    let mut sum: Option<Gradients> = None;
    let mut losses = 0.0f32;
    for starts in starts.chunks(starts.len().div_ceil(training.accumulate)) {
        let (loss, gradients) = part(training, prepared, optimizer, starts, interval)?;
        losses += loss / training.accumulate as f32;
        let Some(gradients) = gradients else {
            return Ok(Stepped::Bad(format!("the loss is {loss}")));
        };
        match &mut sum {
            None => sum = Some(gradients),
            Some(sum) => sum.add(&gradients)?,
        }
    }
    if losses > spike {
        return Ok(Stepped::Bad(format!(
            "the loss is {losses}, a spike above {spike}"
        )));
    }
    let backwarded = Instant::now();
    let Some(gradients) = sum else {
        return Ok(Stepped::Bad("the batch is empty".to_owned()));
    };
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

/// Loss of some windows, and their share in the gradients; none when the loss is not finite.
fn part(
    training: &TrainingConfig,
    prepared: &Prepared,
    optimizer: &Optimizer,
    starts: &[usize],
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
    let share = match training.accumulate {
        1 => loss,
        parts => (loss / parts as f64)?,
    };
    let gradients = Gradients::of(optimizer.vars(), &share.backward()?)?;
    interval.times.backward += forwarded.elapsed();
    Ok((value, Some(gradients)))
}
