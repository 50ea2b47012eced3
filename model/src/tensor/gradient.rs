//! Operations whose value is computed in one go and whose gradient is given.
//!
//! Composed of candle's differentiable operations, a softmax or a norm is ten passes over its
//! numbers forward and twenty backward, most with operands of different shapes, which GPUs are slow
//! at. candle's fused forms have no gradient; here they get one.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Storage, Tensor,
};

/// `value`, a function of `x`, with `backward` from its gradient to that of `x`.
pub(super) fn known(
    x: &Tensor,
    value: Tensor,
    backward: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    match x.track_op() {
        true => x.apply_op1(Known { value, backward }),
        false => Ok(value),
    }
}

/// As [`known`], of two arguments.
pub(super) fn known_of_two(
    x: &Tensor,
    y: &Tensor,
    value: Tensor,
    backward: impl Fn(&Tensor) -> Result<(Tensor, Tensor)> + Send + Sync + 'static,
) -> Result<Tensor> {
    match x.track_op() || y.track_op() {
        true => x.apply_op2(y, Known { value, backward }),
        false => Ok(value),
    }
}

struct Known<F> {
    /// Contiguous.
    value: Tensor,
    backward: F,
}

impl<F> Known<F> {
    fn on_cpu(&self) -> Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.value.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((storage.try_clone(layout)?, layout.shape().clone())),
            _ => candle_core::bail!("a value on another device than its arguments"),
        }
    }

    fn on_cuda(&self) -> Result<(CudaStorage, Shape)> {
        let (storage, layout) = self.value.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, layout.shape().clone())),
            _ => candle_core::bail!("a value on another device than its arguments"),
        }
    }
}

impl<F: Fn(&Tensor) -> Result<Tensor>> CustomOp1 for Known<F> {
    fn name(&self) -> &'static str {
        "known"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        (self.backward)(grad).map(Some)
    }
}

impl<F: Fn(&Tensor) -> Result<(Tensor, Tensor)>> CustomOp2 for Known<F> {
    fn name(&self) -> &'static str {
        "known-of-two"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dy) = (self.backward)(grad)?;
        // What is not trained has no gradient to keep.
        Ok((x.track_op().then_some(dx), y.track_op().then_some(dy)))
    }
}
