//! Activations in the form that a kernel reads.

use super::brain;
use super::grouped::{self, FOURS, GROUP, Rounded, RoundedMut};
use super::level::{Level, run};
use super::single;
use crate::weight_type::WeightType;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Rows by which the work is cut.
pub(crate) const ROWS_A_TASK: usize = 96;
/// Numbers below which threads cost more than they bring.
const PARALLEL: usize = 1 << 16;

/// The rows that a kernel takes at a time: the most first, then what is left.
pub(crate) fn row_blocks(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut next = rows.start;
    std::iter::from_fn(move || {
        let left = rows.end - next;
        let size = [8, 4, 2, 1].into_iter().find(|&size| size <= left)?;
        next += size;
        Some(next - size..next)
    })
}

/// The rows of a call in the form that the kernels of a type read, blocks after blocks; memory to
/// be used again.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// f32.
    floats: Vec<f32>,
    /// Pairs of bf16, or fours of 8 bits.
    words: Vec<u32>,
    /// Of groups in 8 bits.
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl Prepared {
    /// Takes rows of `inputs` numbers.
    pub(crate) fn fill(&mut self, kind: WeightType, level: Level, x: &[f32], inputs: usize) {
        let rows = x.len() / inputs;
        let [floats, words, groups] = lengths(kind, inputs);
        self.floats.resize(rows * floats, 0.0);
        self.words.resize(rows * words, 0);
        self.scales.resize(rows * groups, 0.0);
        self.sums.resize(rows * groups, 0);
        let tasks = (
            self.floats.chunks_mut((floats * ROWS_A_TASK).max(1)),
            self.words.chunks_mut((words * ROWS_A_TASK).max(1)),
            self.scales.chunks_mut((groups * ROWS_A_TASK).max(1)),
            self.sums.chunks_mut((groups * ROWS_A_TASK).max(1)),
        );
        let (mut floats, mut words, mut scales, mut sums) = tasks;
        let tasks: Vec<Chunk<'_>> = x
            .chunks(inputs * ROWS_A_TASK)
            .map(|x| Chunk {
                kind,
                x,
                inputs,
                floats: floats.next().unwrap_or_default(),
                words: words.next().unwrap_or_default(),
                scales: scales.next().unwrap_or_default(),
                sums: sums.next().unwrap_or_default(),
            })
            .collect();
        if x.len() < PARALLEL {
            tasks.into_iter().for_each(|task| run(level, task));
        } else {
            tasks.into_par_iter().for_each(|task| run(level, task));
        }
    }

    /// A block of [`row_blocks`] in f32.
    pub(crate) fn floats(&self, rows: &Range<usize>, inputs: usize) -> &[f32] {
        &self.floats[rows.start * inputs..rows.end * inputs]
    }

    /// A block in bf16.
    pub(crate) fn pairs(&self, rows: &Range<usize>, inputs: usize) -> &[u32] {
        let pairs = brain::pairs(inputs);
        &self.words[rows.start * pairs..rows.end * pairs]
    }

    /// A block in 8 bits.
    pub(crate) fn rounded(&self, rows: &Range<usize>, inputs: usize) -> Rounded<'_> {
        let groups = inputs.div_ceil(GROUP);
        let range = rows.start * groups..rows.end * groups;
        Rounded {
            fours: &self.words[range.start * FOURS..range.end * FOURS],
            scales: &self.scales[range.clone()],
            sums: &self.sums[range],
        }
    }
}

/// Numbers, words and groups of a row.
fn lengths(kind: WeightType, inputs: usize) -> [usize; 3] {
    match kind {
        WeightType::F32 => [inputs, 0, 0],
        WeightType::Bf16 => [0, brain::pairs(inputs), 0],
        WeightType::Int8 | WeightType::Int4 => {
            let groups = inputs.div_ceil(GROUP);
            [0, groups * FOURS, groups]
        }
    }
}

/// Some rows and where they go.
struct Chunk<'a> {
    kind: WeightType,
    x: &'a [f32],
    inputs: usize,
    floats: &'a mut [f32],
    words: &'a mut [u32],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
}

impl WithSimd for Chunk<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let [floats, words, groups] = lengths(self.kind, self.inputs);
        for rows in row_blocks(0..self.x.len() / self.inputs) {
            let of = |width: usize| rows.start * width..rows.end * width;
            let x = &self.x[of(self.inputs)];
            match self.kind {
                WeightType::F32 => single::prepare(x, rows.len(), &mut self.floats[of(floats)]),
                WeightType::Bf16 => brain::prepare(x, rows.len(), &mut self.words[of(words)]),
                WeightType::Int8 | WeightType::Int4 => {
                    let mut out = RoundedMut {
                        fours: &mut self.words[of(words)],
                        scales: &mut self.scales[of(groups)],
                        sums: &mut self.sums[of(groups)],
                    };
                    grouped::prepare(x, rows.len(), &mut out);
                }
            }
        }
    }
}
