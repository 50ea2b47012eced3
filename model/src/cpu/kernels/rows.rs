//! Norms, activations and rotary positions of single rows.

use super::math::{dot, sigmoid, sum, tanh};

/// `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
pub(crate) fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

/// RMSNorm of a row.
#[inline(always)]
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = inverse_rms(x, eps);
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * w;
    }
}

/// [`rms_norm`] of a row, in its place.
#[inline(always)]
pub(crate) fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    let scale = inverse_rms(x, eps);
    for (x, w) in x.iter_mut().zip(weight) {
        *x = *x * scale * w;
    }
}

/// Mean and `1 / sqrt(variance + eps)`; `centred` is scratch of the row's length.
#[inline(always)]
pub(crate) fn moments(x: &[f32], eps: f32, centred: &mut [f32]) -> (f32, f32) {
    let mean = sum(x) / x.len() as f32;
    for (c, x) in centred.iter_mut().zip(x) {
        *c = x - mean;
    }
    (mean, inverse_rms(centred, eps))
}

/// LayerNorm of a row.
#[inline(always)]
pub(crate) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let (_, scale) = moments(x, eps, out);
    for ((out, w), b) in out.iter_mut().zip(weight).zip(bias) {
        *out = (*out * scale).mul_add(*w, *b);
    }
}

/// `silu(gate) · up`.
#[inline(always)]
pub(crate) fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
        *out = g * sigmoid(*g) * u;
    }
}

/// Inner factor and cubic coefficient of the tanh form of GELU.
pub(crate) const GELU_SCALE: f32 = 0.797_884_6;
pub(crate) const GELU_CUBE: f32 = 0.044_715;

/// GELU by tanh.
#[inline(always)]
pub(crate) fn gelu(x: &[f32], out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        let inner = GELU_SCALE * (GELU_CUBE * x * x).mul_add(x, x);
        *out = 0.5 * x * (1.0 + tanh(inner));
    }
}

/// Cosines, then sines, of one position's angles: `2 · Dh/2` numbers.
pub(crate) fn rotary_angles(frequencies: &[f32], position: usize, out: &mut [f32]) {
    let (cos, sin) = out.split_at_mut(frequencies.len());
    for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(frequencies) {
        let angle = position as f32 * frequency;
        (*sin, *cos) = angle.sin_cos();
    }
}

/// Turns one head by the angles of [`rotary_angles`]: element i with element `i + Dh/2`, as
/// `transformers`' llama. `direction` is 1, or -1 to turn back (the gradient).
#[inline(always)]
pub(crate) fn rotate(head: &mut [f32], angles: &[f32], direction: f32) {
    let half = head.len() / 2;
    let (low, high) = head.split_at_mut(half);
    let (cos, sin) = angles.split_at(half);
    for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let s = s * direction;
        let (x, y) = (*a, *b);
        *a = x * c - y * s;
        *b = y * c + x * s;
    }
}
