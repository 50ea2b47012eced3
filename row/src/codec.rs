//! From the numbers of a row to its bytes and back.

use std::str::FromStr;

use half::{bf16, f16, slice::HalfFloatSliceExt as _};

use crate::dtype::{INT4_GROUP, RowDtype};
use crate::error::{Error, Result};

impl RowDtype {
    /// Appends the encoded row to `out`: exactly `row_bytes(row.len())` bytes.
    ///
    /// The largest error of an element is 0 for `F32`, half a unit in the last place for `F16`
    /// and `Bf16`, and half a scale for the integers (plus f32 rounding), where the scale is the
    /// largest magnitude of the row (or group) over 127 (or 7, rounded up to an f16).
    ///
    /// # Errors
    /// When an element is not finite, or too large for the stored type; `out` is then as before.
    pub fn encode(self, row: &[f32], out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        out.reserve(self.row_bytes(row.len()));
        let encoded = match row.iter().position(|x| !x.is_finite()) {
            Some(i) => Err((i, row[i])),
            None => match self {
                RowDtype::F32 => {
                    row.iter()
                        .for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
                    Ok(())
                }
                RowDtype::F16 => encode_f16(row, out),
                RowDtype::Bf16 => encode_bf16(row, out),
                RowDtype::Int8 => {
                    encode_int8(row, out);
                    Ok(())
                }
                RowDtype::Int4 => encode_int4(row, out),
            },
        };
        encoded.map_err(|(i, value)| {
            out.truncate(start);
            let (dtype, index) = (self, i);
            Error::Element {
                dtype,
                index,
                value,
            }
        })
    }

    /// Fills `out` with the elements of one encoded row.
    ///
    /// # Errors
    /// When `bytes` is not `row_bytes(out.len())` long.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        let expected = self.row_bytes(out.len());
        if bytes.len() != expected {
            return Err(Error::Length {
                dtype: self,
                dim: out.len(),
                expected,
                got: bytes.len(),
            });
        }
        match self {
            RowDtype::F32 => decode_each(bytes, out, f32::from_le_bytes),
            RowDtype::F16 => decode_f16(bytes, out),
            RowDtype::Bf16 => decode_each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            RowDtype::Int8 => decode_int8(bytes, out),
            RowDtype::Int4 => decode_int4(bytes, out),
        }
        Ok(())
    }
}

impl RowDtype {
    /// Whether every element of one encoded row of `dim` elements is a finite number, as
    /// [`encode`](Self::encode) leaves none that is not. `false` as well when `row` has not the
    /// length of a row.
    pub fn is_finite(self, row: &[u8], dim: usize) -> bool {
        if row.len() != self.row_bytes(dim) {
            return false;
        }
        match self {
            RowDtype::F32 => {
                no_exponent_full(row, |b| u32::from_le_bytes(b) & 0x7f80_0000, 0x7f80_0000)
            }
            RowDtype::F16 => f16s_are_finite(row),
            RowDtype::Bf16 => no_exponent_full(row, |b| u16::from_le_bytes(b) & 0x7f80, 0x7f80),
            RowDtype::Int8 => no_exponent_full(
                &row[..4],
                |b| u32::from_le_bytes(b) & 0x7f80_0000,
                0x7f80_0000,
            ),
            RowDtype::Int4 => f16s_are_finite(&row[..2 * dim.div_ceil(INT4_GROUP)]),
        }
    }
}

fn f16s_are_finite(bytes: &[u8]) -> bool {
    no_exponent_full(bytes, |b| u16::from_le_bytes(b) & 0x7c00, 0x7c00)
}

/// Whether no element has all bits of its exponent set, as infinities and NaN have. Without a way
/// out of the loop, so that it goes in vectors.
fn no_exponent_full<const N: usize, E: PartialEq>(
    bytes: &[u8],
    exponent: impl Fn([u8; N]) -> E,
    full: E,
) -> bool {
    let (elements, _) = bytes.as_chunks::<N>();
    let wrong = elements.iter().map(|&b| u32::from(exponent(b) == full));
    wrong.fold(0, |any, wrong| any | wrong) == 0
}

impl FromStr for RowDtype {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = RowDtype::ALL.into_iter().find(|dtype| dtype.name() == text);
        named.ok_or_else(|| Error::Name(text.to_owned()))
    }
}

/// Index and value of an element that does not fit.
type Misfit = (usize, f32);

fn encode_f16(row: &[f32], out: &mut Vec<u8>) -> std::result::Result<(), Misfit> {
    for (i, &x) in row.iter().enumerate() {
        let stored = f16::from_f32(x);
        if stored.is_infinite() {
            return Err((i, x));
        }
        out.extend_from_slice(&stored.to_le_bytes());
    }
    Ok(())
}

fn encode_bf16(row: &[f32], out: &mut Vec<u8>) -> std::result::Result<(), Misfit> {
    for (i, &x) in row.iter().enumerate() {
        let stored = bf16::from_f32(x);
        if stored.is_infinite() {
            return Err((i, x));
        }
        out.extend_from_slice(&stored.to_le_bytes());
    }
    Ok(())
}

/// Index and magnitude of the largest element.
fn largest(row: &[f32]) -> Misfit {
    let mut best = (0, 0.0);
    for (i, x) in row.iter().enumerate() {
        if x.abs() > best.1 {
            best = (i, x.abs());
        }
    }
    best
}

/// The nearest multiple of `scale`, as a number of scales within `-limit..=limit`.
fn quantise(x: f32, scale: f32, limit: f32) -> i8 {
    if scale == 0.0 {
        0
    } else {
        (x / scale).round().clamp(-limit, limit) as i8
    }
}

fn encode_int8(row: &[f32], out: &mut Vec<u8>) {
    let scale = largest(row).1 / 127.0;
    out.extend_from_slice(&scale.to_le_bytes());
    out.extend(row.iter().map(|&x| quantise(x, scale, 127.0) as u8));
}

fn encode_int4(row: &[f32], out: &mut Vec<u8>) -> std::result::Result<(), Misfit> {
    let mut scales = Vec::with_capacity(row.len().div_ceil(INT4_GROUP));
    for (g, group) in row.chunks(INT4_GROUP).enumerate() {
        let (i, magnitude) = largest(group);
        let scale = round_up_f16(magnitude / 7.0);
        if scale.is_infinite() {
            return Err((g * INT4_GROUP + i, group[i]));
        }
        out.extend_from_slice(&scale.to_le_bytes());
        scales.push(scale.to_f32());
    }
    let nibble = |i: usize| match row.get(i) {
        Some(&x) => quantise(x, scales[i / INT4_GROUP], 7.0) as u8 & 0x0f,
        None => 0,
    };
    out.extend(
        (0..row.len())
            .step_by(2)
            .map(|i| nibble(i) | nibble(i + 1) << 4),
    );
    Ok(())
}

/// The smallest f16 that is not below `x >= 0`, so that no element needs more than 7 scales.
fn round_up_f16(x: f32) -> f16 {
    let nearest = f16::from_f32(x);
    if nearest.to_f32() < x {
        f16::from_bits(nearest.to_bits() + 1)
    } else {
        nearest
    }
}

fn decode_each<const N: usize>(bytes: &[u8], out: &mut [f32], element: impl Fn([u8; N]) -> f32) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (x, &stored) in out.iter_mut().zip(elements) {
        *x = element(stored);
    }
}

/// Converts blocks instead of elements: one question to the CPU for its f16 instructions, and all
/// of a block in vectors. Rows are bytes at any address, so a block is copied first.
fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    let mut block = [f16::ZERO; 64];
    let (elements, _) = bytes.as_chunks::<2>();
    for (out, elements) in out
        .chunks_mut(block.len())
        .zip(elements.chunks(block.len()))
    {
        let block = &mut block[..out.len()];
        for (x, &stored) in block.iter_mut().zip(elements) {
            *x = f16::from_le_bytes(stored);
        }
        block.convert_to_f32_slice(out);
    }
}

fn decode_int8(bytes: &[u8], out: &mut [f32]) {
    let Some((scale, values)) = bytes.split_first_chunk() else {
        return;
    };
    let scale = f32::from_le_bytes(*scale);
    for (x, &value) in out.iter_mut().zip(values) {
        *x = scale * f32::from(value as i8);
    }
}

fn decode_int4(bytes: &[u8], out: &mut [f32]) {
    let groups = out.len().div_ceil(INT4_GROUP);
    let (scales, nibbles) = bytes.split_at(2 * groups);
    for (g, group) in out.chunks_mut(INT4_GROUP).enumerate() {
        let scale = f16::from_le_bytes([scales[2 * g], scales[2 * g + 1]]).to_f32();
        for (j, x) in group.iter_mut().enumerate() {
            let i = g * INT4_GROUP + j;
            let byte = nibbles[i / 2];
            // Shifting a nibble to the top and back down again extends its sign.
            let nibble = if i.is_multiple_of(2) {
                (byte << 4) as i8 >> 4
            } else {
                byte as i8 >> 4
            };
            *x = scale * f32::from(nibble);
        }
    }
}
