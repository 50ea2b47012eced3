//! Cross-entropy of logits, and of a hidden state through the output layer.

use crate::cpu::kernels::gemm::{Matrix, Threads, gemm};
use crate::cpu::kernels::math::{exp, max, sum};
use crate::cpu::kernels::simd;
use crate::precision::Precision;
use crate::storage::{gradient, result, slice, with_slice};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Mutex;

/// Rows one task takes.
const GROUP: usize = 32;
/// The same of factors in bf16: the weight is packed for each task.
const BF16_GROUP: usize = 256;

/// Turns a row of logits into its softmax and returns the loss of the target.
#[inline(always)]
fn softmax_row(row: &mut [f32], target: u32) -> f32 {
    let logit = row[target as usize];
    let largest = max(row);
    for x in row.iter_mut() {
        *x = exp(*x - largest);
    }
    let total = sum(row);
    let inverse = 1.0 / total;
    for x in row.iter_mut() {
        *x *= inverse;
    }
    total.ln() - (logit - largest)
}

fn mean(losses: &[f32]) -> f32 {
    let total: f64 = losses.iter().map(|&l| f64::from(l)).sum();
    (total / losses.len() as f64) as f32
}

/// Turns a row of logits into the gradient of `scale` times its loss, and returns the loss.
#[inline(always)]
fn logits_gradient(row: &mut [f32], target: u32, scale: f32) -> f32 {
    let loss = softmax_row(row, target);
    row[target as usize] -= 1.0;
    for x in row.iter_mut() {
        *x *= scale;
    }
    loss
}

/// Which gradients somebody will ask for.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) hidden: bool,
    pub(super) weight: bool,
}

/// Gradients of hidden states and weight; empty where none was wanted.
type Gradients = (Vec<f32>, Vec<f32>);

/// Mean over the rows of `hidden (N, D)` times `weight (V, D)` transposed.
///
/// The forward pass computes the gradients that are wanted while the logits are in the cache, and
/// keeps them until the backward pass asks.
pub(super) struct LinearCrossEntropy {
    pub(super) targets: Vec<u32>,
    /// Of the products.
    pub(super) precision: Precision,
    pub(super) wanted: Wanted,
    pub(super) kept: Mutex<Option<Gradients>>,
}

impl LinearCrossEntropy {
    fn group_rows(&self) -> usize {
        match self.precision {
            Precision::F32 => GROUP,
            Precision::Bf16 => BF16_GROUP,
        }
    }

    /// Losses of all rows and both gradients. Those of the logits exist all at once, because the
    /// weight's gradient sums over all rows.
    fn with_weight(&self, hidden: &[f32], weight: Matrix<'_>) -> (Vec<f32>, Gradients) {
        let (vocab, width) = (weight.rows, weight.columns);
        let (rows, group) = (self.targets.len(), self.group_rows());
        let scale = 1.0 / rows as f32;
        let mut dlogits = vec![0.0f32; rows * vocab];
        let mut losses = vec![0.0f32; rows];
        dlogits
            .par_chunks_mut(group * vocab)
            .zip(losses.par_chunks_mut(group))
            .zip(hidden.par_chunks(group * width))
            .zip(self.targets.par_chunks(group))
            .for_each(|(((logits, losses), hidden), targets)| {
                self.gradients_of(hidden, weight, targets, scale, logits, losses);
            });
        let mut dhidden = vec![0.0f32; rows * width];
        let mut dweight = vec![0.0f32; vocab * width];
        let dlogits = Matrix::new(&dlogits, rows, vocab);
        let how = (self.precision, Threads::Pool);
        gemm(dlogits, weight, &mut dhidden, how);
        let hidden = Matrix::new(hidden, rows, width);
        gemm(dlogits.transposed(), hidden, &mut dweight, how);
        (losses, (dhidden, dweight))
    }

    /// The same without the weight's gradient: logits of a few rows at a time.
    fn without_weight(&self, hidden: &[f32], weight: Matrix<'_>) -> (Vec<f32>, Gradients) {
        let (vocab, width) = (weight.rows, weight.columns);
        let (rows, group) = (self.targets.len(), self.group_rows());
        let scale = 1.0 / rows as f32;
        let mut losses = vec![0.0f32; rows];
        let mut dhidden = vec![0.0f32; rows * width];
        losses
            .par_chunks_mut(group)
            .zip(dhidden.par_chunks_mut(group * width))
            .zip(hidden.par_chunks(group * width))
            .zip(self.targets.par_chunks(group))
            .for_each_init(
                Vec::new,
                |logits, (((losses, dhidden), hidden), targets)| {
                    logits.resize(losses.len() * vocab, 0.0);
                    self.gradients_of(hidden, weight, targets, scale, logits, losses);
                    if self.wanted.hidden {
                        let dlogits = Matrix::new(logits, losses.len(), vocab);
                        gemm(dlogits, weight, dhidden, (self.precision, Threads::One));
                    }
                },
            );
        (losses, (dhidden, Vec::new()))
    }

    /// Losses of some rows, and in `logits` the gradients of `scale` times their sum.
    fn gradients_of(
        &self,
        hidden: &[f32],
        weight: Matrix<'_>,
        targets: &[u32],
        scale: f32,
        logits: &mut [f32],
        losses: &mut [f32],
    ) {
        let hidden = Matrix::new(hidden, losses.len(), weight.columns);
        let how = (self.precision, Threads::One);
        gemm(hidden, weight.transposed(), logits, how);
        simd(
            #[inline(always)]
            || {
                let rows = logits.chunks_mut(weight.rows).zip(targets);
                for ((row, &target), loss) in rows.zip(losses) {
                    *loss = logits_gradient(row, target, scale);
                }
            },
        );
    }
}

impl CustomOp2 for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear-cross-entropy"
    }

    fn cpu_fwd(
        &self,
        hidden: &CpuStorage,
        hidden_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = hidden_layout.shape().dims2()?.1;
        let vocab = weight_layout.shape().dims2()?.0;
        let hidden = slice(hidden, hidden_layout)?;
        let weight = Matrix::new(slice(weight, weight_layout)?, vocab, width);
        let (losses, gradients) = match self.wanted.weight {
            true => self.with_weight(hidden, weight),
            false => self.without_weight(hidden, weight),
        };
        if let Ok(mut kept) = self.kept.lock() {
            *kept = Some(gradients);
        }
        result(vec![mean(&losses)], ())
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let kept = self.kept.lock().ok().and_then(|mut kept| kept.take());
        let Some((mut dhidden, mut dweight)) = kept else {
            candle_core::bail!("the loss was differentiated before");
        };
        let scale = grad.to_scalar::<f32>()?;
        if scale != 1.0 {
            for x in dhidden.iter_mut().chain(&mut dweight) {
                *x *= scale;
            }
        }
        let dweight = match self.wanted.weight {
            true => gradient(dweight, weight)?,
            false => None,
        };
        Ok((gradient(dhidden, hidden)?, dweight))
    }
}

/// Loss of every row, without gradients.
pub(super) fn token_losses(hidden: &Tensor, weight: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
    let (vocab, width) = weight.dims2()?;
    let mut losses = vec![0.0f32; targets.len()];
    with_slice(hidden, |hidden| {
        with_slice(weight, |weight| {
            let weight = Matrix::new(weight, vocab, width);
            losses
                .par_chunks_mut(GROUP)
                .zip(hidden.par_chunks(GROUP * width))
                .zip(targets.par_chunks(GROUP))
                .for_each(|((losses, hidden), targets)| {
                    let mut logits = vec![0.0f32; losses.len() * vocab];
                    let hidden = Matrix::new(hidden, losses.len(), width);
                    let how = (Precision::F32, Threads::One);
                    gemm(hidden, weight.transposed(), &mut logits, how);
                    simd(
                        #[inline(always)]
                        || {
                            let rows = logits.chunks_mut(vocab).zip(targets);
                            for ((row, &target), loss) in rows.zip(losses) {
                                *loss = softmax_row(row, target);
                            }
                        },
                    );
                });
            Ok(())
        })
    })?;
    Ok(losses)
}
