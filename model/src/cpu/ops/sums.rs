//! Sums of the parts of a gradient.

/// Adds the parts of a weight's gradient, in order.
pub(super) fn add_parts(parts: Vec<Vec<f32>>, width: usize) -> Vec<f32> {
    let mut total = vec![0.0f32; width];
    for part in parts {
        for (total, part) in total.iter_mut().zip(part) {
            *total += part;
        }
    }
    total
}
