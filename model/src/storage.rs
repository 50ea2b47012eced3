//! From candle's tensors to plain numbers and back.

use candle_core::{CpuStorage, Layout, Result, Shape, Storage, Tensor, bail};
use std::ops::{Deref, Range};

/// The numbers of a contiguous f32 tensor in host memory, borrowed.
pub(crate) struct Numbers<'a> {
    /// A read lock, whose type candle does not name.
    storage: Box<dyn Deref<Target = Storage> + 'a>,
    range: Range<usize>,
}

impl<'a> Numbers<'a> {
    /// Borrows a tensor's numbers.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let range = match &*storage {
            Storage::Cpu(storage) => contiguous(storage, layout)?,
            _ => bail!("the CPU path got a tensor that is not in host memory"),
        };
        Ok(Self {
            storage: Box::new(storage),
            range,
        })
    }

    pub(crate) fn values(&self) -> &[f32] {
        match &**self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            // Refused when they were borrowed.
            _ => &[],
        }
    }
}

/// Where a layout's numbers are in its storage, both of which must suit the CPU path.
fn contiguous(storage: &CpuStorage, layout: &Layout) -> Result<Range<usize>> {
    storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("the CPU path got a tensor that is not contiguous"),
    }
}

/// The numbers of a contiguous f32 storage.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    Ok(&storage.as_slice::<f32>()?[contiguous(storage, layout)?])
}

/// Lends the numbers of a tensor, which is made contiguous first if need be.
pub(crate) fn with_slice<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    f(Numbers::of(&tensor.contiguous()?)?.values())
}

/// What a forward pass returns.
pub(crate) fn result(values: Vec<f32>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(values), shape.into()))
}

/// What a backward pass returns: numbers in the shape of a tensor; nothing for a tensor that is not
/// trained, which would only be kept and added up.
pub(crate) fn gradient(values: Vec<f32>, like: &Tensor) -> Result<Option<Tensor>> {
    if !like.track_op() {
        return Ok(None);
    }
    Tensor::from_vec(values, like.shape(), like.device()).map(Some)
}
