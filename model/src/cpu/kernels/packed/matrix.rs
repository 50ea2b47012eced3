//! A packed weight and its products.

use super::grouped::{self, GROUP, Int4, Int8, SCALES, Whole};
use super::level::Level;
use super::line::{Line, TILE, view, view_mut, zeroed};
use super::prepared::{Prepared, ROWS_A_TASK, row_blocks};
use super::threads::{SharedRows, share_out};
use super::{brain, int_block, single};
use crate::cpu::kernels::matmul::Weight;
use crate::cpu::kernels::simd;
use crate::layout::WeightLayout;
use crate::weight_type::WeightType;
use rayon::prelude::*;

/// Multiplications below which threads cost more than they bring.
const PARALLEL: usize = 1 << 18;
/// Bytes of weights that a thread takes at a time, about: few enough that all have work to the
/// end, enough that memory is read in long runs.
const BYTES_A_TASK: usize = 1 << 16;

/// Weights of a product, `(out, in)` in tiles.
#[derive(Debug)]
pub(crate) struct Packed {
    kind: WeightType,
    level: Level,
    inputs: usize,
    outputs: usize,
    lines: Vec<Line>,
}

/// Lines of a tile.
fn tile_lines(kind: WeightType, inputs: usize) -> usize {
    let bytes = match kind {
        WeightType::F32 => inputs * TILE * 4,
        WeightType::Bf16 => brain::pairs(inputs) * TILE * 4,
        WeightType::Int8 => inputs.div_ceil(GROUP) * (Int8::BYTES + SCALES),
        WeightType::Int4 => inputs.div_ceil(GROUP) * (Int4::BYTES + SCALES),
    };
    bytes / size_of::<Line>()
}

impl Packed {
    /// Packs weights of the same inputs, their outputs one after the other, for the best kernel of
    /// this machine.
    pub(crate) fn new(kind: WeightType, weights: &[Weight<'_>]) -> Self {
        Self::at_level(kind, Level::best(kind), weights)
    }

    /// Packs for kernels of one level, which must be [available](Level::available) for the type.
    ///
    /// # Panics
    /// When it is not: its kernels rely on that.
    pub(crate) fn at_level(kind: WeightType, level: Level, weights: &[Weight<'_>]) -> Self {
        assert!(Level::available(kind).any(|here| here == level));
        let inputs = weights.first().map_or(0, |weight| weight.inputs);
        let outputs = weights.iter().map(|weight| weight.outputs).sum::<usize>();
        let lines = tile_lines(kind, inputs);
        let mut packed = zeroed(outputs.div_ceil(TILE) * lines);
        packed
            .par_chunks_mut(lines.max(1))
            .enumerate()
            .for_each_init(
                || vec![0.0; inputs],
                |row, (tile, lines)| {
                    for column in 0..TILE.min(outputs - tile * TILE) {
                        copy_row(weights, tile * TILE + column, row);
                        let tile = &mut *lines;
                        let row = row.as_slice();
                        simd(
                            #[inline(always)]
                            || pack(kind, row, tile, column),
                        );
                    }
                },
            );
        Self {
            kind,
            level,
            inputs,
            outputs,
            lines: packed,
        }
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// What the kernels were chosen for.
    pub(crate) fn level(&self) -> Level {
        self.level
    }

    /// Memory of the weights.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice())
    }

    /// The weights of one output, read back.
    pub(crate) fn row(&self, output: usize, row: &mut [f32]) {
        let (tile, column) = (self.tile(output / TILE), output % TILE);
        match self.kind {
            WeightType::F32 => single::unpack(view(tile), column, row),
            WeightType::Bf16 => brain::unpack(view(tile), column, row),
            WeightType::Int8 => grouped::unpack::<Int8>(view(tile), column, row),
            WeightType::Int4 => grouped::unpack::<Int4>(view(tile), column, row),
        }
    }

    /// `x (N, in)` times the weights, plus the bias, into `out (N, out)`.
    pub(crate) fn product(
        &self,
        x: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
        prepared: &mut Prepared,
    ) {
        if x.is_empty() || self.outputs == 0 {
            return;
        }
        let rows = x.len() / self.inputs;
        prepared.fill(self.kind, self.level, x, self.inputs);
        let prepared = &*prepared;
        let tiles = self.outputs.div_ceil(TILE);
        let tasks = rows.div_ceil(ROWS_A_TASK) * tiles;
        let grain = match x.len() * self.outputs < PARALLEL {
            true => tasks,
            false => self.grain(tiles),
        };
        let out = SharedRows::new(out, self.outputs);
        share_out(tasks, grain, |range| {
            for task in range {
                let first = task / tiles * ROWS_A_TASK;
                let rows = first..rows.min(first + ROWS_A_TASK);
                self.tile_product(task % tiles, rows, bias, prepared, &out);
            }
        });
    }

    /// Tiles that a thread takes at a time.
    fn grain(&self, tiles: usize) -> usize {
        let bytes = tile_lines(self.kind, self.inputs) * size_of::<Line>();
        let even = tiles / (4 * rayon::current_num_threads());
        BYTES_A_TASK.div_ceil(bytes.max(1)).min(even).max(1)
    }

    fn tile(&self, tile: usize) -> &[Line] {
        let lines = tile_lines(self.kind, self.inputs);
        &self.lines[tile * lines..(tile + 1) * lines]
    }

    #[expect(
        unsafe_code,
        reason = "tiles of the same rows are computed by several threads"
    )]
    fn tile_product(
        &self,
        tile: usize,
        rows: std::ops::Range<usize>,
        bias: Option<&[f32]>,
        x: &Prepared,
        out: &SharedRows<'_>,
    ) {
        let columns = tile * TILE..self.outputs.min((tile + 1) * TILE);
        let bias = bias.map(|bias| &bias[columns.clone()]);
        let lines = self.tile(tile);
        for rows in row_blocks(rows) {
            let mut sums = [[0.0f32; TILE]; 8];
            let sums = &mut sums[..rows.len()];
            let (level, inputs) = (self.level, self.inputs);
            match self.kind {
                WeightType::F32 => {
                    single::block(level, view(lines), x.floats(&rows, inputs), sums);
                }
                WeightType::Bf16 => {
                    brain::block(level, view(lines), x.pairs(&rows, inputs), sums);
                }
                WeightType::Int8 => {
                    let x = x.rounded(&rows, inputs);
                    int_block::block::<Int8>(level, view(lines), &x, sums);
                }
                WeightType::Int4 => {
                    let x = x.rounded(&rows, inputs);
                    int_block::block::<Int4>(level, view(lines), &x, sums);
                }
            }
            for (row, sums) in rows.zip(sums) {
                // SAFETY: a tile of some rows is one task, which one thread has; tiles and rows do
                // not overlap.
                let out = unsafe { out.columns(row, columns.clone()) };
                write(out, sums, bias);
            }
        }
    }
}

fn write(out: &mut [f32], sums: &[f32; TILE], bias: Option<&[f32]>) {
    match bias {
        None => out.copy_from_slice(&sums[..out.len()]),
        Some(bias) => {
            for ((out, sum), bias) in out.iter_mut().zip(sums).zip(bias) {
                *out = sum + bias;
            }
        }
    }
}

/// The weights of one output of several weights.
fn copy_row(weights: &[Weight<'_>], mut output: usize, row: &mut [f32]) {
    for weight in weights {
        if output < weight.outputs {
            match weight.layout {
                WeightLayout::OutIn => {
                    let start = output * weight.inputs;
                    row.copy_from_slice(&weight.values[start..start + weight.inputs]);
                }
                WeightLayout::InOut => {
                    let column = weight.values[output..].iter().step_by(weight.outputs);
                    row.iter_mut()
                        .zip(column)
                        .for_each(|(to, from)| *to = *from);
                }
            }
            return;
        }
        output -= weight.outputs;
    }
}

#[inline(always)]
fn pack(kind: WeightType, row: &[f32], tile: &mut [Line], column: usize) {
    match kind {
        WeightType::F32 => single::pack(row, view_mut(tile), column),
        WeightType::Bf16 => brain::pack(row, view_mut(tile), column),
        WeightType::Int8 => grouped::pack::<Int8>(row, view_mut(tile), column),
        WeightType::Int4 => grouped::pack::<Int4>(row, view_mut(tile), column),
    }
}
