//! int8 and int4 weights: groups of 32 inputs of an output with a scale.
//!
//! Activations are rounded to 8 bits in the same groups, each group of each row by a scale of its
//! own. The products of a group are summed as whole numbers, which is exact in any order, and the
//! groups are added in order in f32, each as `sum · (weight scale · activation scale)`: so a result
//! has the same bits at every level.
//!
//! A group of a tile is eight lines of four inputs, 32 outputs abreast, then the 32 scales in f16.
//! Weights are held above zero, by an offset: multiplication instructions want one factor so. In
//! int4 a byte holds an input of the group's first half below one of its second half.

use super::line::TILE;
use crate::cpu::kernels::LANES;
use crate::cpu::kernels::math::sum_lanes;
use half::f16;

/// Inputs of a group.
pub(crate) const GROUP: usize = 32;
/// Fours of inputs of a group.
pub(crate) const FOURS: usize = GROUP / 4;

/// How the whole numbers of a group lie.
pub(crate) trait Whole: Copy {
    /// What is added to a weight to make it positive.
    const OFFSET: i32;
    /// Bytes of the weights of a group of a tile.
    const BYTES: usize;
    /// A group's scale, and its weights without offset.
    fn quantise(group: &[f32; GROUP]) -> (f16, [i8; GROUP]);
    /// Puts weight `i` of an output, with its offset.
    fn put(bytes: &mut [u8], column: usize, i: usize, value: u8);
    /// The weight that [`put`](Self::put) put, with its offset.
    fn get(bytes: &[u8], column: usize, i: usize) -> u8;
}

/// 8 bits.
#[derive(Clone, Copy)]
pub(crate) struct Int8;

/// 4 bits.
#[derive(Clone, Copy)]
pub(crate) struct Int4;

/// Bytes of the scales of a group of a tile.
pub(crate) const SCALES: usize = 2 * TILE;

/// Where the four that holds input `i` begins for a column.
#[inline(always)]
fn at(column: usize, i: usize) -> usize {
    (i / 4) * 4 * TILE + 4 * column + i % 4
}

impl Whole for Int8 {
    const OFFSET: i32 = 128;
    const BYTES: usize = GROUP * TILE;

    #[inline(always)]
    fn quantise(group: &[f32; GROUP]) -> (f16, [i8; GROUP]) {
        let largest = group.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        let scale = to_f16(largest / 127.0);
        // The most negative number is left out: its absolute value is none of 8 bits.
        (scale, rounded(group, scale, -127.0, 127.0))
    }

    #[inline(always)]
    fn put(bytes: &mut [u8], column: usize, i: usize, value: u8) {
        bytes[at(column, i)] = value;
    }

    #[inline(always)]
    fn get(bytes: &[u8], column: usize, i: usize) -> u8 {
        bytes[at(column, i)]
    }
}

impl Whole for Int4 {
    const OFFSET: i32 = 8;
    const BYTES: usize = GROUP * TILE / 2;

    /// Of several scales near the one that fits the largest weight, the one with the least squared
    /// error.
    #[inline(always)]
    fn quantise(group: &[f32; GROUP]) -> (f16, [i8; GROUP]) {
        let extreme = group
            .iter()
            .fold(0.0f32, |a, &x| if x.abs() > a.abs() { x } else { a });
        if extreme == 0.0 {
            return (f16::ZERO, [0; GROUP]);
        }
        let mut best = (f32::INFINITY, f16::ZERO, [0; GROUP]);
        for step in -6..=6i8 {
            let start = extreme / (-8.0 + 0.15 * f32::from(step));
            let scale = fitting(group, &rounded(group, to_f16(start), -8.0, 7.0), start);
            let values = rounded(group, scale, -8.0, 7.0);
            let error = squared_error(group, scale, &values);
            if error < best.0 {
                best = (error, scale, values);
            }
        }
        (best.1, best.2)
    }

    #[inline(always)]
    fn put(bytes: &mut [u8], column: usize, i: usize, value: u8) {
        let byte = &mut bytes[at(column, i % (GROUP / 2))];
        *byte |= if i < GROUP / 2 { value } else { value << 4 };
    }

    #[inline(always)]
    fn get(bytes: &[u8], column: usize, i: usize) -> u8 {
        let byte = bytes[at(column, i % (GROUP / 2))];
        if i < GROUP / 2 { byte & 15 } else { byte >> 4 }
    }
}

/// The nearest f16 that is a number.
#[inline(always)]
fn to_f16(scale: f32) -> f16 {
    let limit = f16::MAX.to_f32();
    f16::from_f32(scale.clamp(-limit, limit))
}

#[inline(always)]
fn rounded(group: &[f32; GROUP], scale: f16, least: f32, most: f32) -> [i8; GROUP] {
    let scale = scale.to_f32();
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut values = [0; GROUP];
    for (value, x) in values.iter_mut().zip(group) {
        *value = whole((x * inverse).clamp(least, most));
    }
    values
}

/// The nearest whole number, ties to even, of 8 bits.
#[inline(always)]
fn whole(x: f32) -> i8 {
    // This addition rounds to a whole number and leaves it in the low bits.
    (x + 12_582_912.0).to_bits() as i8
}

/// The scale that fits whole numbers best.
#[inline(always)]
fn fitting(group: &[f32; GROUP], values: &[i8; GROUP], otherwise: f32) -> f16 {
    let product = sum(|i| group[i] * f32::from(values[i]));
    let square = sum(|i| f32::from(values[i]) * f32::from(values[i]));
    to_f16(if square > 0.0 {
        product / square
    } else {
        otherwise
    })
}

#[inline(always)]
fn squared_error(group: &[f32; GROUP], scale: f16, values: &[i8; GROUP]) -> f32 {
    let scale = scale.to_f32();
    sum(|i| {
        let error = group[i] - scale * f32::from(values[i]);
        error * error
    })
}

/// Sum over a group.
#[inline(always)]
fn sum(term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    for (i, lane) in lanes.iter_mut().enumerate() {
        *lane = term(i) + term(i + LANES);
    }
    sum_lanes(lanes)
}

/// A row of weights into column `column` of a tile, which is zero there.
#[inline(always)]
pub(crate) fn pack<W: Whole>(row: &[f32], tile: &mut [u8], column: usize) {
    for (bytes, row) in tile
        .chunks_exact_mut(W::BYTES + SCALES)
        .zip(row.chunks(GROUP))
    {
        let mut group = [0.0; GROUP];
        group[..row.len()].copy_from_slice(row);
        let (scale, values) = W::quantise(&group);
        let (bytes, scales) = bytes.split_at_mut(W::BYTES);
        for (i, value) in values.into_iter().enumerate() {
            W::put(bytes, column, i, (i32::from(value) + W::OFFSET) as u8);
        }
        scales[2 * column..][..2].copy_from_slice(&scale.to_le_bytes());
    }
}

/// Reads back what [`pack`] made of a row.
pub(crate) fn unpack<W: Whole>(tile: &[u8], column: usize, row: &mut [f32]) {
    for (bytes, row) in tile
        .chunks_exact(W::BYTES + SCALES)
        .zip(row.chunks_mut(GROUP))
    {
        let (bytes, scales) = bytes.split_at(W::BYTES);
        let scale = scale_of(scales, column);
        for (i, x) in row.iter_mut().enumerate() {
            *x = scale * (i32::from(W::get(bytes, column, i)) - W::OFFSET) as f32;
        }
    }
}

/// The scale of a column.
#[inline(always)]
pub(crate) fn scale_of(scales: &[u8], column: usize) -> f32 {
    f16::from_le_bytes([scales[2 * column], scales[2 * column + 1]]).to_f32()
}

/// Activations of R rows in 8 bits, rows side by side.
pub(crate) struct Rounded<'a> {
    /// Fours of inputs: `[group][four][row]`.
    pub(crate) fours: &'a [u32],
    /// `[group][row]`.
    pub(crate) scales: &'a [f32],
    /// Sums of the activations of a group: `[group][row]`.
    pub(crate) sums: &'a [i32],
}

/// As [`Rounded`], to write.
pub(crate) struct RoundedMut<'a> {
    pub(crate) fours: &'a mut [u32],
    pub(crate) scales: &'a mut [f32],
    pub(crate) sums: &'a mut [i32],
}

/// Rounds R rows of activations.
#[inline(always)]
pub(crate) fn prepare(x: &[f32], rows: usize, out: &mut RoundedMut<'_>) {
    let inputs = x.len() / rows;
    for (r, x) in x.chunks_exact(inputs).enumerate() {
        for (g, x) in x.chunks(GROUP).enumerate() {
            let mut group = [0.0; GROUP];
            group[..x.len()].copy_from_slice(x);
            let (scale, values) = round_group(&group);
            let at = g * rows + r;
            out.scales[at] = scale;
            out.sums[at] = values.iter().map(|&v| i32::from(v)).sum();
            let (fours, _) = values.as_chunks::<4>();
            for (i, four) in fours.iter().enumerate() {
                let bytes = four.map(|v| v as u8);
                out.fours[(g * FOURS + i) * rows + r] = u32::from_le_bytes(bytes);
            }
        }
    }
}

#[inline(always)]
fn round_group(group: &[f32; GROUP]) -> (f32, [i8; GROUP]) {
    let mut largest = [0.0f32; 16];
    for half in group.as_chunks::<16>().0 {
        for (a, x) in largest.iter_mut().zip(half) {
            let x = x.abs();
            *a = if x > *a { x } else { *a };
        }
    }
    let largest = largest
        .iter()
        .fold(0.0f32, |a, &x| if x > a { x } else { a });
    let inverse = 127.0 / largest;
    if !inverse.is_finite() {
        return (0.0, [0; GROUP]);
    }
    let mut values = [0; GROUP];
    for (value, x) in values.iter_mut().zip(group) {
        *value = whole(x * inverse);
    }
    (largest / 127.0, values)
}
