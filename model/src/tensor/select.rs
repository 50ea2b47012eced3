//! Rows of a table by index, with a gradient that GPUs compute fast.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, DType, InplaceOp3, Layout, Result, Shape, Tensor,
};

/// Elements of the matrix that says which row went where, at most, at a time.
const ELEMENTS: usize = 1 << 26;
/// Rows of a table above which such a matrix is mostly zeros, and rows are added where they went.
const MANY_ROWS: usize = 1 << 16;

/// `table (V, D)`, `index (N)` to `(N, D)`: candle's `index_select` with another gradient. candle
/// adds the rows of a gradient one after the other; here they are a product with the matrix
/// `(V, N)` that has a one where row i went to n, some columns at a time.
pub(super) struct SelectRows;

impl CustomOp2 for SelectRows {
    fn name(&self) -> &'static str {
        "select-rows"
    }

    fn cpu_fwd(
        &self,
        table: &CpuStorage,
        of_table: &Layout,
        index: &CpuStorage,
        of_index: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let rows = table.index_select(index, of_table, of_index, 0)?;
        Ok((rows, shape(of_table, of_index)?))
    }

    fn cuda_fwd(
        &self,
        table: &CudaStorage,
        of_table: &Layout,
        index: &CudaStorage,
        of_index: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let rows = table.index_select(index, of_table, of_index, 0)?;
        Ok((rows, shape(of_table, of_index)?))
    }

    fn bwd(
        &self,
        table: &Tensor,
        index: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (rows, count) = (table.dim(0)?, index.dim(0)?);
        if rows > MANY_ROWS {
            let sum = table.zeros_like()?;
            sum.inplace_op3(&grad.contiguous()?, index, &AddRows)?;
            return Ok((Some(sum), None));
        }
        let numbers = Tensor::arange(0, rows as u32, index.device())?.unsqueeze(1)?;
        let columns = (ELEMENTS / rows.max(1)).max(1);
        let mut sum: Option<Tensor> = None;
        for start in (0..count).step_by(columns) {
            let some = columns.min(count - start);
            let went = index.narrow(0, start, some)?.unsqueeze(0)?;
            let went = numbers.broadcast_eq(&went)?.to_dtype(grad.dtype())?;
            let part = went.matmul(&grad.narrow(0, start, some)?.contiguous()?)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        Ok((sum, None))
    }
}

/// To `(V, D)` are added rows `(N, D)`, each where an index says, in place.
struct AddRows;

impl InplaceOp3 for AddRows {
    fn name(&self) -> &'static str {
        "add-rows"
    }

    fn cpu_fwd(
        &self,
        to: &mut CpuStorage,
        _: &Layout,
        rows: &CpuStorage,
        of_rows: &Layout,
        index: &CpuStorage,
        _: &Layout,
    ) -> Result<()> {
        let width = of_rows.shape().dims2()?.1;
        let CpuStorage::U32(index) = index else {
            candle_core::bail!("an index is {:?}", DType::U32);
        };
        match (to, rows) {
            (CpuStorage::F32(to), CpuStorage::F32(rows)) => add(to, rows, index, width),
            (CpuStorage::F64(to), CpuStorage::F64(rows)) => add(to, rows, index, width),
            _ => candle_core::bail!("gradients are f32 or f64"),
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        to: &mut CudaStorage,
        _: &Layout,
        rows: &CudaStorage,
        of_rows: &Layout,
        index: &CudaStorage,
        of_index: &Layout,
    ) -> Result<()> {
        super::kernels::add_rows(to, (rows, of_rows), (index, of_index))
    }
}

fn add<T: Copy + std::ops::AddAssign>(to: &mut [T], rows: &[T], index: &[u32], width: usize) {
    for (row, &at) in rows.chunks(width.max(1)).zip(index) {
        let to = &mut to[at as usize * width..][..width];
        to.iter_mut().zip(row).for_each(|(to, x)| *to += *x);
    }
}

fn shape(table: &Layout, index: &Layout) -> Result<Shape> {
    Ok((index.shape().dims1()?, table.shape().dims2()?.1).into())
}

/// Row `index[i]` of `table`, the index checked before.
pub(super) fn select(table: &Tensor, index: &Tensor) -> Result<Tensor> {
    // Types without a product, as integers, have no gradient either.
    match table.track_op() && matches!(table.dtype(), DType::F32 | DType::F64) {
        true => table.contiguous()?.apply_op2(index, SelectRows),
        false => table.index_select(index, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn rows_of_a_large_table_get_their_gradient() {
        let rows = MANY_ROWS + 3;
        let table = Var::zeros((rows, 2), DType::F32, &Device::Cpu).unwrap();
        let index = Tensor::new(&[5u32, MANY_ROWS as u32, 5], &Device::Cpu).unwrap();
        let weights = Tensor::new(&[[1f32, 2.0], [3.0, 4.0], [5.0, 6.0]], &Device::Cpu).unwrap();
        let ours = select(table.as_tensor(), &index).unwrap();
        let grads = (ours * weights)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        let grad = grads.get(table.as_tensor()).unwrap();
        let row = |i: usize| grad.get(i).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(row(5), [6.0, 8.0]);
        assert_eq!(row(MANY_ROWS), [3.0, 4.0]);
        assert_eq!(grad.sum_all().unwrap().to_scalar::<f32>().unwrap(), 21.0);
    }

    #[test]
    fn rows_and_their_gradient_are_those_of_index_select() {
        let values: Vec<f32> = (0..60).map(|i| (i as f32 * 0.7).sin()).collect();
        let table = Var::from_vec(values, (12, 5), &Device::Cpu).unwrap();
        let index: Vec<u32> = (0..40).map(|i| i * i % 11).collect();
        let index = Tensor::from_vec(index, 40, &Device::Cpu).unwrap();
        let weights: Vec<f32> = (0..200).map(|i| (i as f32 * 0.3).cos()).collect();
        let weights = Tensor::from_vec(weights, (40, 5), &Device::Cpu).unwrap();
        let plain = table.as_tensor().index_select(&index, 0).unwrap();
        let ours = select(table.as_tensor(), &index).unwrap();
        let numbers = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(numbers(&ours), numbers(&plain));
        let gradient = |rows: &Tensor| {
            let loss = (rows * &weights).unwrap().sum_all().unwrap();
            let grads = loss.backward().unwrap();
            numbers(grads.get(table.as_tensor()).unwrap())
        };
        for (a, b) in gradient(&ours).iter().zip(gradient(&plain)) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }
}
