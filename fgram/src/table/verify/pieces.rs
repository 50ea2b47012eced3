//! The pieces of a table that several threads share, and what came of them.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// Pieces that the disk is asked for before they are read: with fewer it waits for the processor.
const AHEAD: u32 = 4;

/// The pieces of a table, taken one after the other by several threads.
pub(super) struct Pieces {
    total: u32,
    in_piece: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The first row that nobody has taken yet.
    next: u32,
    done: u32,
    bad: u64,
    /// The first damaged row's error, and the first row of its piece.
    first_bad: Option<(u32, Error)>,
    /// What ends it all, likewise.
    failed: Option<(u32, Error)>,
}

impl Pieces {
    pub(super) fn of(total: u32, in_piece: u32) -> Self {
        Self {
            total,
            in_piece,
            state: Mutex::default(),
        }
    }

    /// No code that can panic runs while the lock is held, so a poisoned one is sound.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows of the next piece. `read_soon` gets those of one or more that come later.
    pub(super) fn take(&self, read_soon: impl FnOnce(Range<u32>)) -> Option<Range<u32>> {
        let rows = {
            let mut state = self.state();
            if state.failed.is_some() || state.next >= self.total {
                return None;
            }
            let rows = state.next..self.piece_end(state.next, 1);
            state.next = rows.end;
            rows
        };
        // At the start all that is ahead, then one piece more each time.
        let ahead = match rows.start {
            0 => 0..self.piece_end(0, AHEAD + 1),
            start => self.piece_end(start, AHEAD)..self.piece_end(start, AHEAD + 1),
        };
        if !ahead.is_empty() {
            read_soon(ahead);
        }
        Some(rows)
    }

    /// The end of so many pieces from `start` on.
    fn piece_end(&self, start: u32, pieces: u32) -> u32 {
        start
            .saturating_add(pieces.saturating_mul(self.in_piece))
            .min(self.total)
    }

    /// Notes what came of a piece; returns the rows done so far.
    pub(super) fn checked(&self, rows: Range<u32>, checked: Result<Option<(u64, Error)>>) -> u32 {
        let mut state = self.state();
        state.done += rows.end - rows.start;
        let earliest = |first: &mut Option<(u32, Error)>, error| {
            if first.as_ref().is_none_or(|(row, _)| rows.start < *row) {
                *first = Some((rows.start, error));
            }
        };
        match checked {
            Ok(None) => {}
            Ok(Some((bad, error))) => {
                state.bad += bad;
                earliest(&mut state.first_bad, error);
            }
            Err(error) => earliest(&mut state.failed, error),
        }
        state.done
    }

    /// What came of all; `data_loss` makes an error about rows.
    pub(super) fn result(self, data_loss: impl FnOnce(String) -> Error) -> Result<()> {
        let state = self.state.into_inner();
        let state = state.unwrap_or_else(PoisonError::into_inner);
        if let Some((_, error)) = state.failed {
            return Err(error);
        }
        match state.first_bad {
            None => Ok(()),
            Some((_, first)) => {
                let total = u64::from(self.total);
                Err(data_loss(bad_rows(state.bad, total, &first)))
            }
        }
    }
}

/// How damaged rows are told of.
pub(super) fn bad_rows(bad: u64, total: u64, first: &Error) -> String {
    format!("{bad} of {total} rows are bad; the first: {first}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn error(text: &str) -> Error {
        Error::argument("row", text)
    }

    #[test]
    fn pieces_come_once_each_and_are_asked_for_before() {
        let pieces = Pieces::of(103, 10);
        let (mut asked, mut taken) = (0, 0);
        while let Some(rows) = pieces.take(|ahead| {
            assert_eq!(ahead.start, asked);
            asked = ahead.end;
        }) {
            assert_eq!(rows.start, taken);
            taken = rows.end;
            assert!(asked == (taken + 40).min(103), "{asked} at {taken}");
            assert_eq!(pieces.checked(rows, Ok(None)), taken);
        }
        assert_eq!((asked, taken), (103, 103));
        assert!(pieces.result(|_| unreachable!()).is_ok());
        assert!(Pieces::of(0, 10).take(|_| unreachable!()).is_none());
    }

    #[test]
    fn the_first_error_is_told_whichever_comes_first_and_damaged_keys_end_it() {
        let pieces = Pieces::of(100, 10);
        let [first, second] = [(); 2].map(|()| pieces.take(|_| {}).unwrap());
        pieces.checked(second, Ok(Some((2, error("second")))));
        pieces.checked(first.clone(), Ok(Some((1, error("first")))));
        let result = pieces.result(|problem| error(&problem)).unwrap_err();
        assert!(result.to_string().contains("3 of 100 rows are bad"));
        assert!(result.to_string().contains("first"), "{result}");

        let pieces = Pieces::of(100, 10);
        pieces.checked(first, Err(error("a key")));
        assert!(pieces.take(|_| {}).is_none());
        let result = pieces.result(|_| unreachable!()).unwrap_err();
        assert!(result.to_string().contains("a key"));
    }
}
