//! The input rule: where an f-gram ends, its row replaces the token embedding.

use crate::error::{Error, Result};
use crate::storage::Numbers;
use candle_core::Tensor;
use scone_row::EncodedRow;

/// What one position's input is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position<'a> {
    pub(crate) token_id: u32,
    /// The row of the longest f-gram that ends here.
    pub(crate) row: Option<EncodedRow<'a>>,
    /// Its number in the sequence, for models with learned positions.
    pub(crate) index: u32,
}

/// Input embeddings `(N, D)`, in the form of a path.
pub(crate) enum Input {
    Numbers(Vec<f32>),
    Tensor(Tensor),
}

/// For the CPU path: each row is decoded straight from the memory it came in; `token` writes a row
/// of the token embedding.
pub(crate) fn numbers(
    width: usize,
    token: impl Fn(u32, &mut [f32]) -> Result<()>,
    position_embedding: Option<&Tensor>,
    positions: &[Position<'_>],
) -> Result<Input> {
    let mut input = vec![0.0f32; positions.len() * width];
    for (position, out) in positions.iter().zip(input.chunks_mut(width)) {
        match &position.row {
            Some(row) => row.decode(out)?,
            None => token(position.token_id, out)?,
        }
    }
    if let Some(table) = position_embedding {
        let table = Numbers::of(table)?;
        for (position, out) in positions.iter().zip(input.chunks_mut(width)) {
            let row = table_row(table.values(), position.index, width)?;
            out.iter_mut().zip(row).for_each(|(x, p)| *x += p);
        }
    }
    Ok(Input::Numbers(input))
}

/// Row `index` of a table `(.., width)`.
pub(crate) fn table_row(table: &[f32], index: u32, width: usize) -> Result<&[f32]> {
    let start = index as usize * width;
    table
        .get(start..start + width)
        .ok_or_else(|| beyond(index, table.len() / width))
}

/// For the tensor path: rows are decoded into one buffer, which goes to the device in one copy.
pub(crate) fn tensor(
    token_embedding: &Tensor,
    position_embedding: Option<&Tensor>,
    positions: &[Position<'_>],
) -> Result<Input> {
    let (vocab, width) = token_embedding.dims2()?;
    let device = token_embedding.device();
    let select = |table: &Tensor, index: Vec<u32>| -> Result<Tensor> {
        let index = Tensor::from_vec(index, positions.len(), device)?;
        Ok(table.index_select(&index, 0)?)
    };
    if let Some(p) = positions.iter().find(|p| p.token_id as usize >= vocab) {
        return Err(beyond(p.token_id, vocab));
    }
    let tokens = positions.iter().map(|p| p.token_id).collect();
    let mut input = select(token_embedding, tokens)?;
    let rows: Vec<_> = positions.iter().filter_map(|p| p.row).collect();
    if !rows.is_empty() {
        let mut values = vec![0.0f32; rows.len() * width];
        for (row, out) in rows.iter().zip(values.chunks_mut(width)) {
            row.decode(out)?;
        }
        let rows = Tensor::from_vec(values, (rows.len(), width), device)?;
        let both = Tensor::cat(&[&input, &rows.to_dtype(input.dtype())?], 0)?;
        let mut next = positions.len() as u32..;
        let source = |(i, p): (u32, &Position<'_>)| match p.row {
            Some(_) => next.next().unwrap_or(i),
            None => i,
        };
        input = select(&both, (0..).zip(positions).map(source).collect())?;
    }
    if let Some(table) = position_embedding {
        let index = positions.iter().map(|p| p.index).collect();
        input = (input + select(table, index)?)?;
    }
    Ok(Input::Tensor(input))
}

fn beyond(index: u32, rows: usize) -> Error {
    Error::Argument(format!("row {index} of a table of {rows} rows"))
}
