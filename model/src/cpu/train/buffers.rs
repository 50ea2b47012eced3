//! Memory that is used again from step to step.

use std::sync::{Arc, Mutex};

/// A pool of number buffers. Fresh memory of this size would come from the system page by page
/// each step, which costs as much as filling it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers(Arc<Mutex<Vec<Vec<f32>>>>);

impl Buffers {
    /// A buffer of `len` numbers of any value.
    pub(crate) fn take(&self, len: usize) -> Vec<f32> {
        let mut best: Option<usize> = None;
        let mut free = match self.0.lock() {
            Ok(free) => free,
            Err(poisoned) => poisoned.into_inner(),
        };
        for (i, buffer) in free.iter().enumerate() {
            let fits = buffer.capacity() >= len;
            if fits && best.is_none_or(|b| buffer.capacity() < free[b].capacity()) {
                best = Some(i);
            }
        }
        let mut buffer = match best {
            Some(i) => free.swap_remove(i),
            // Nothing fits: let the largest go rather than keep buffers that are all too small.
            None => {
                let largest = (0..free.len()).max_by_key(|&i| free[i].capacity());
                if let Some(i) = largest {
                    free.swap_remove(i);
                }
                Vec::with_capacity(len.next_multiple_of(1 << 12))
            }
        };
        drop(free);
        buffer.resize(len, 0.0);
        buffer
    }

    /// Takes a buffer back.
    pub(crate) fn give(&self, buffer: Vec<f32>) {
        if let Ok(mut free) = self.0.lock() {
            free.push(buffer);
        }
    }
}
