//! Work shared out over the threads of the pool.
#![expect(
    unsafe_code,
    reason = "several threads write columns of the same rows, which slices cannot say"
)]

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs `work` on all of `0..tasks`, `grain` at a time, each taken by the thread that is free.
pub(crate) fn share_out(tasks: usize, grain: usize, work: impl Fn(Range<usize>) + Sync) {
    let next = AtomicUsize::new(0);
    let worker = || {
        loop {
            let start = next.fetch_add(grain, Ordering::Relaxed);
            if start >= tasks {
                return;
            }
            work(start..tasks.min(start + grain));
        }
    };
    let threads = tasks
        .div_ceil(grain.max(1))
        .min(rayon::current_num_threads());
    if threads < 2 {
        return worker();
    }
    rayon::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|_| worker());
        }
        worker();
    });
}

/// Rows of numbers, whose columns are written by several threads.
pub(crate) struct SharedRows<'a> {
    start: *mut f32,
    len: usize,
    width: usize,
    rows: PhantomData<&'a mut [f32]>,
}

// SAFETY: the memory is borrowed mutably for 'a and reached through `columns` alone, whose callers
// promise that no two threads hold the same numbers; f32 may be sent.
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    pub(crate) fn new(rows: &'a mut [f32], width: usize) -> Self {
        Self {
            start: rows.as_mut_ptr(),
            len: rows.len(),
            width,
            rows: PhantomData,
        }
    }

    /// Columns of a row.
    ///
    /// # Safety
    /// While the result lives nobody else asks for any of its numbers.
    ///
    /// # Panics
    /// When they are beyond the row or the rows.
    #[expect(
        clippy::mut_from_ref,
        reason = "the caller promises that nobody else has it"
    )]
    pub(crate) unsafe fn columns(&self, row: usize, columns: Range<usize>) -> &mut [f32] {
        let first = row * self.width + columns.start;
        assert!(columns.start <= columns.end && columns.end <= self.width);
        assert!(first + columns.len() <= self.len);
        // SAFETY: inside the memory that was borrowed, by the assertions; not aliased, as promised.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), columns.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once() {
        for (tasks, grain) in [(0, 1), (1, 4), (1000, 7), (64, 1)] {
            let mut done = vec![0.0f32; tasks];
            let shared = SharedRows::new(&mut done, 1);
            share_out(tasks, grain, |range| {
                for task in range {
                    // SAFETY: `share_out` hands every task out once.
                    let column = unsafe { shared.columns(task, 0..1) };
                    column[0] += 1.0;
                }
            });
            assert!(done.iter().all(|&n| n == 1.0), "{tasks} by {grain}");
        }
    }

    #[test]
    #[should_panic(expected = "columns.end <= self.width")]
    fn columns_beyond_a_row_are_refused() {
        let mut rows = [0.0; 6];
        let shared = SharedRows::new(&mut rows, 3);
        // SAFETY: nobody else asks.
        let _ = unsafe { shared.columns(0, 2..4) };
    }
}
