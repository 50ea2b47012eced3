//! Backward passes of norms and activations, row by row.

use super::math::{dot, sigmoid, sum, tanh};
use super::rows::{self, GELU_CUBE, GELU_SCALE};

/// Gradient of an RMSNorm row, added to `dx` and `dw`: with `n = x · s` and `h = g · w`,
/// `dx = s (h - n mean(h · n))`. `h` is scratch of the row's length.
#[inline(always)]
pub(crate) fn rms_norm(
    x: &[f32],
    w: &[f32],
    g: &[f32],
    eps: f32,
    dx: &mut [f32],
    dw: &mut [f32],
    h: &mut [f32],
) {
    let scale = rows::inverse_rms(x, eps);
    for ((h, g), w) in h.iter_mut().zip(g).zip(w) {
        *h = g * w;
    }
    let mean = dot(h, x) * scale / x.len() as f32;
    for ((dx, h), x) in dx.iter_mut().zip(&*h).zip(x) {
        *dx += scale * (h - x * scale * mean);
    }
    for ((dw, g), x) in dw.iter_mut().zip(g).zip(x) {
        *dw += g * x * scale;
    }
}

/// Gradient of a LayerNorm row, added to `dx` and to `both`, the gradients of weight and bias end
/// to end: with `n` the normalised row and `h = g · w`, `dx = s (h - mean(h) - n mean(h · n))`.
/// `scratch` is twice as long as the row.
#[inline(always)]
pub(crate) fn layer_norm(
    x: &[f32],
    w: &[f32],
    g: &[f32],
    eps: f32,
    dx: &mut [f32],
    both: &mut [f32],
    scratch: &mut [f32],
) {
    let width = x.len();
    let (n, h) = scratch.split_at_mut(width);
    let (_, scale) = rows::moments(x, eps, n);
    for n in n.iter_mut() {
        *n *= scale;
    }
    for ((h, g), w) in h.iter_mut().zip(g).zip(w) {
        *h = g * w;
    }
    let mean = sum(h) / width as f32;
    let slope = dot(h, n) / width as f32;
    for ((dx, h), n) in dx.iter_mut().zip(&*h).zip(&*n) {
        *dx += scale * (h - mean - n * slope);
    }
    let (dw, db) = both.split_at_mut(width);
    for (((dw, db), g), n) in dw.iter_mut().zip(db).zip(g).zip(&*n) {
        *dw += g * n;
        *db += g;
    }
}

/// Gradient of SwiGLU.
#[inline(always)]
pub(crate) fn swiglu(gate: &[f32], up: &[f32], grad: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    let inputs = gate.iter().zip(up).zip(grad);
    for ((((gate, up), grad), dgate), dup) in inputs.zip(dgate).zip(dup) {
        let s = sigmoid(*gate);
        *dup = grad * gate * s;
        *dgate = grad * up * s * (1.0 + gate * (1.0 - s));
    }
}

/// Gradient of GELU.
#[inline(always)]
pub(crate) fn gelu(x: &[f32], grad: &[f32], dx: &mut [f32]) {
    for ((dx, &x), grad) in dx.iter_mut().zip(x).zip(grad) {
        let t = tanh(GELU_SCALE * (GELU_CUBE * x * x).mul_add(x, x));
        let inner = GELU_SCALE * (3.0 * GELU_CUBE * x).mul_add(x, 1.0);
        *dx = grad * 0.5 * (x * inner).mul_add(1.0 - t * t, 1.0 + t);
    }
}
