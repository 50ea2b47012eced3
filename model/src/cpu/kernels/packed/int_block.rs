//! int8 and int4: which kernel, and the one in plain Rust.

use super::grouped::{FOURS, GROUP, Rounded, SCALES, Whole, scale_of};
use super::level::Level;
use super::line::TILE;

/// Sums of a tile's outputs for as many rows as `out` has: 1, 2, 4 or 8.
#[cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls what needs instructions of its own")
)]
pub(crate) fn block<W: Whole>(level: Level, tile: &[u8], x: &Rounded<'_>, out: &mut [[f32; TILE]]) {
    #[cfg(target_arch = "x86_64")]
    match level {
        // SAFETY: a level is only made where `Level::available` found its instructions, those of
        // AVX512-VNNI for whole numbers.
        Level::Avx512 => return unsafe { super::int_avx512::block::<W>(tile, x, out) },
        // SAFETY: as above: AVX2, FMA and F16C.
        Level::Avx2 => return unsafe { super::int_avx2::block::<W>(tile, x, out) },
        Level::Portable => {}
    }
    let _ = level;
    portable::<W>(tile, x, out);
}

fn portable<W: Whole>(tile: &[u8], x: &Rounded<'_>, out: &mut [[f32; TILE]]) {
    let rows = out.len();
    out.fill([0.0; TILE]);
    for (g, group) in tile.chunks_exact(W::BYTES + SCALES).enumerate() {
        let (bytes, scales) = group.split_at(W::BYTES);
        for (r, out) in out.iter_mut().enumerate() {
            let at = g * rows + r;
            let whole = products::<W>(bytes, |i| x.fours[(g * FOURS + i) * rows + r]);
            for (column, (out, sum)) in out.iter_mut().zip(whole).enumerate() {
                let scale = scale_of(scales, column) * x.scales[at];
                let sum = sum - W::OFFSET * x.sums[at];
                *out = (sum as f32).mul_add(scale, *out);
            }
        }
    }
}

/// Sums of a group with the weights' offset.
fn products<W: Whole>(bytes: &[u8], four: impl Fn(usize) -> u32) -> [i32; TILE] {
    let mut sums = [0i32; TILE];
    for i in 0..GROUP {
        let x = i32::from(four(i / 4).to_le_bytes()[i % 4] as i8);
        for (column, sum) in sums.iter_mut().enumerate() {
            *sum += x * i32::from(W::get(bytes, column, i));
        }
    }
    sums
}
