//! The next positions of several sequences, on top of what the pool holds of them.

use super::pass::{Attend, Layers, blocks};
use crate::cpu::block::Sizes;
use crate::cpu::kernels::paged::{self, attend};
use crate::cpu::kernels::rows::{rotary_angles, rotate};
use crate::cpu::kernels::simd;
use crate::cpu::pool::Pool;
use crate::error::Result;
use crate::kv_blocks::{KV_BLOCK_POSITIONS, Part};
use crate::layout::Heads;
use rayon::prelude::*;
use std::ops::Range;

/// Queries that one task attends for, about.
const QUERIES_A_TASK: usize = 16;
/// Multiplications of a layer below which threads cost more than they bring.
const PARALLEL: usize = 1 << 18;

/// `x (N, D)`, the rows of all parts end to end, through the blocks, in place. The pool gets the
/// keys and values of the new positions.
pub(crate) fn step(
    layers: Layers<'_>,
    sizes: &Sizes,
    frequencies: Option<&[f32]>,
    x: &mut [f32],
    pool: &mut Pool,
    parts: &[Part<'_>],
) -> Result<()> {
    let mut sequences = Sequences::new(pool, parts, frequencies, sizes.heads);
    blocks(layers, sizes, x, &mut sequences)
}

/// The sequences of one call.
struct Sequences<'a> {
    pool: &'a mut Pool,
    parts: &'a [Part<'a>],
    /// Part and position of each row.
    rows: Vec<(usize, usize)>,
    tasks: Vec<Task>,
    /// Whether the tasks are worth more than one thread.
    parallel: bool,
    /// What the tasks mixed, one after the other.
    mixed: Vec<f32>,
    /// Rotary angles of each row, none without rotary positions.
    angles: Vec<f32>,
    heads: Heads,
}

/// Some rows of one part, and the query heads of one key-value head.
struct Task {
    part: usize,
    kv_head: usize,
    rows: Range<usize>,
}

impl<'a> Sequences<'a> {
    fn new(
        pool: &'a mut Pool,
        parts: &'a [Part<'a>],
        frequencies: Option<&[f32]>,
        heads: Heads,
    ) -> Self {
        let mut rows = Vec::new();
        let mut tasks = Vec::new();
        let rows_a_task = (QUERIES_A_TASK / heads.group()).max(1);
        for (part, Part { held, len, .. }) in parts.iter().enumerate() {
            let (first, end) = (rows.len(), rows.len() + len);
            rows.extend((*held..held + len).map(|position| (part, position)));
            for start in (first..end).step_by(rows_a_task) {
                tasks.extend((0..heads.num_kv_heads).map(|kv_head| Task {
                    part,
                    kv_head,
                    rows: start..end.min(start + rows_a_task),
                }));
            }
        }
        let mut angles = Vec::new();
        if let Some(frequencies) = frequencies {
            angles.resize(rows.len() * heads.head_dim, 0.0);
            for (out, (_, position)) in angles.chunks_mut(heads.head_dim).zip(&rows) {
                rotary_angles(frequencies, *position, out);
            }
        }
        let positions: usize = rows.iter().map(|(_, position)| position + 1).sum();
        Self {
            pool,
            parts,
            parallel: 2 * positions * heads.q_width() >= PARALLEL,
            mixed: vec![0.0; rows.len() * heads.q_width()],
            rows,
            tasks,
            angles,
            heads,
        }
    }

    /// Turns queries and keys by their positions.
    fn turn(&self, joint: &mut [f32]) {
        let (heads, dim) = (self.heads, self.heads.head_dim);
        let turned = heads.q_width() + heads.kv_width();
        let angles = self.angles.chunks(dim);
        for (row, angles) in joint.chunks_mut(heads.width()).zip(angles) {
            for head in row[..turned].chunks_mut(dim) {
                rotate(head, angles, 1.0);
            }
        }
    }

    /// Puts keys and values into the pool.
    fn keep(&mut self, layer: usize, joint: &[f32]) {
        let (key, value) = (self.heads.key(0), self.heads.value(0));
        for (row, &(part, position)) in joint.chunks(self.heads.width()).zip(&self.rows) {
            let block = self.parts[part].blocks[position / KV_BLOCK_POSITIONS];
            let slot = position % KV_BLOCK_POSITIONS;
            self.pool
                .write(layer, block, slot, &row[key..value], &row[value..]);
        }
    }
}

impl Task {
    /// Numbers of its result: `[row][head of the group][Dh]`.
    fn len(&self, heads: Heads) -> usize {
        self.rows.len() * heads.group() * heads.head_dim
    }

    fn run(&self, layer: usize, all: &Shared<'_>, scratch: &mut TaskScratch, out: &mut [f32]) {
        let (heads, group) = (all.heads, all.heads.group());
        scratch.queries.clear();
        scratch.positions.clear();
        for row in self.rows.clone() {
            let joint = &all.joint[row * heads.width()..(row + 1) * heads.width()];
            let start = heads.query(self.kv_head * group);
            let queries = &joint[start..start + group * heads.head_dim];
            let scale = heads.scale();
            scratch.queries.extend(queries.iter().map(|q| q * scale));
            scratch
                .positions
                .extend(std::iter::repeat_n(all.rows[row].1, group));
        }
        let held = Held {
            pool: all.pool,
            layer,
            blocks: all.parts[self.part].blocks,
            kv_head: self.kv_head,
        };
        let (queries, positions) = (&scratch.queries, &scratch.positions);
        simd(
            #[inline(always)]
            || attend(queries, positions, &held, &mut scratch.attention, out),
        );
    }

    /// Copies its result to the rows of attention's result.
    fn scatter(&self, heads: Heads, from: &[f32], mixed: &mut [f32]) {
        let width = heads.group() * heads.head_dim;
        for (row, from) in self.rows.clone().zip(from.chunks(width)) {
            let start = row * heads.q_width() + self.kv_head * width;
            mixed[start..start + width].copy_from_slice(from);
        }
    }
}

/// What all tasks of a layer read.
struct Shared<'a> {
    pool: &'a Pool,
    parts: &'a [Part<'a>],
    rows: &'a [(usize, usize)],
    joint: &'a [f32],
    heads: Heads,
}

/// Memory of one thread.
#[derive(Default)]
struct TaskScratch {
    queries: Vec<f32>,
    positions: Vec<usize>,
    attention: paged::Scratch,
}

/// One head of the blocks of one sequence.
struct Held<'a> {
    pool: &'a Pool,
    layer: usize,
    blocks: &'a [u32],
    kv_head: usize,
}

impl paged::Blocks for Held<'_> {
    #[inline(always)]
    fn ask_for_keys(&self, i: usize) {
        if let Some(block) = self.blocks.get(i) {
            self.pool.ask_for_keys(self.layer, *block, self.kv_head);
        }
    }

    #[inline(always)]
    fn ask_for_values(&self, i: usize) {
        if let Some(block) = self.blocks.get(i) {
            self.pool.ask_for_values(self.layer, *block, self.kv_head);
        }
    }

    #[inline(always)]
    fn keys<'a>(&'a self, i: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        self.pool
            .keys(self.layer, self.blocks[i], self.kv_head, scratch)
    }

    #[inline(always)]
    fn values<'a>(&'a self, i: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        self.pool
            .values(self.layer, self.blocks[i], self.kv_head, scratch)
    }
}

impl Attend for Sequences<'_> {
    fn attend(&mut self, layer: usize, joint: &mut [f32], mixed: &mut [f32]) {
        if !self.angles.is_empty() {
            self.turn(joint);
        }
        self.keep(layer, joint);
        let heads = self.heads;
        let all = Shared {
            pool: self.pool,
            parts: self.parts,
            rows: &self.rows,
            joint,
            heads,
        };
        let mut rest = self.mixed.as_mut_slice();
        let mut tasks = Vec::with_capacity(self.tasks.len());
        for task in &self.tasks {
            let (out, tail) = rest.split_at_mut(task.len(heads));
            rest = tail;
            tasks.push((task, out));
        }
        let run = |scratch: &mut TaskScratch, (task, out): (&Task, &mut [f32])| {
            task.run(layer, &all, scratch, out);
        };
        if self.parallel {
            tasks
                .into_par_iter()
                .for_each_init(TaskScratch::default, run);
        } else {
            let mut scratch = TaskScratch::default();
            tasks.into_iter().for_each(|task| run(&mut scratch, task));
        }
        let mut from = self.mixed.as_slice();
        for task in &self.tasks {
            let (of_task, tail) = from.split_at(task.len(heads));
            from = tail;
            task.scatter(heads, of_task, mixed);
        }
    }
}
