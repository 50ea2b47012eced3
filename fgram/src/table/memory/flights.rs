//! Misses under way: a row that several look-ups miss at once is fetched once.
//!
//! A look-up takes off with the rows that nobody else is fetching, reads and lands them, and only
//! then waits for those of others. So two look-ups never wait for each other, and one whose fetch
//! fails or panics lands empty-handed: whoever waited for it fetches for itself.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::table::memory::request::RowRequest;

/// The rows being fetched now.
#[derive(Default)]
pub(crate) struct Flights {
    /// Which flight brings a row, and as which of its rows.
    rows: Mutex<HashMap<u32, (Arc<Flight>, usize)>>,
}

/// One fetch of some rows.
#[derive(Default)]
struct Flight {
    state: Mutex<State>,
    landed: Condvar,
}

#[derive(Default)]
enum State {
    #[default]
    Flying,
    /// The rows, end to end; empty when nobody waited for them.
    Landed(Arc<[u8]>),
    Failed,
}

/// A row that another look-up is fetching.
struct Awaited {
    request: RowRequest,
    flight: Arc<Flight>,
    index: usize,
}

impl Flights {
    /// Fills in `rows` at their indices in `out`, rows of `row_bytes`, by as few calls of `fetch` as
    /// the look-ups under way allow; returns how many rows others brought.
    ///
    /// # Errors
    /// Those of `fetch`.
    pub(crate) fn fetch(
        &self,
        rows: Vec<RowRequest>,
        row_bytes: usize,
        out: &mut [u8],
        mut fetch: impl FnMut(&[RowRequest], &mut [u8]) -> Result<()>,
    ) -> Result<u64> {
        let mut brought = 0;
        let mut left = rows;
        while !left.is_empty() {
            let (mut departure, awaited) = self.take_off(left);
            if !departure.rows.is_empty() {
                fetch(&departure.rows, out)?;
                departure.land(row_bytes, out);
            }
            drop(departure);
            left = Vec::new();
            for Awaited {
                request,
                flight,
                index,
            } in awaited
            {
                if flight.copy(index, &mut out[request.range(row_bytes)]) {
                    brought += 1;
                } else {
                    left.push(request);
                }
            }
        }
        Ok(brought)
    }

    /// Sorts the rows into those to fetch now and those to wait for.
    fn take_off(&self, rows: Vec<RowRequest>) -> (Departure<'_>, Vec<Awaited>) {
        let flight = Arc::new(Flight::default());
        let mut own = Vec::with_capacity(rows.len());
        let mut awaited = Vec::new();
        let mut flying = lock(&self.rows);
        for request in rows {
            match flying.entry(request.row) {
                Entry::Vacant(entry) => {
                    entry.insert((Arc::clone(&flight), own.len()));
                    own.push(request);
                }
                Entry::Occupied(entry) => {
                    let (flight, index) = entry.get();
                    awaited.push(Awaited {
                        request,
                        flight: Arc::clone(flight),
                        index: *index,
                    });
                }
            }
        }
        drop(flying);
        let departure = Departure {
            flights: self,
            flight,
            rows: own,
            done: false,
        };
        (departure, awaited)
    }
}

/// The fetch of this look-up. Dropped before it has landed, it lands empty-handed.
struct Departure<'a> {
    flights: &'a Flights,
    flight: Arc<Flight>,
    rows: Vec<RowRequest>,
    done: bool,
}

impl Departure<'_> {
    /// Hands the fetched rows in `out` to those who wait for them.
    fn land(&mut self, row_bytes: usize, out: &[u8]) {
        self.close();
        // Nobody can join a closed flight, so one holder alone means that nobody waits.
        let waited_for = Arc::strong_count(&self.flight) > 1;
        let mut landed = Vec::new();
        if waited_for {
            for request in &self.rows {
                landed.extend_from_slice(&out[request.range(row_bytes)]);
            }
        }
        self.flight.set(State::Landed(landed.into()));
        self.done = true;
    }

    /// Lets nobody join any more.
    fn close(&self) {
        let mut flying = lock(&self.flights.rows);
        for request in &self.rows {
            flying.remove(&request.row);
        }
    }
}

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.close();
            self.flight.set(State::Failed);
        }
    }
}

impl Flight {
    fn set(&self, state: State) {
        *lock(&self.state) = state;
        self.landed.notify_all();
    }

    /// Waits, then copies one of the rows; false when the fetch failed.
    fn copy(&self, index: usize, out: &mut [u8]) -> bool {
        let mut state = lock(&self.state);
        while matches!(*state, State::Flying) {
            state = self
                .landed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let State::Landed(rows) = &*state else {
            return false;
        };
        let rows = Arc::clone(rows);
        drop(state);
        let start = index * out.len();
        let row = rows.get(start..start + out.len());
        row.inspect(|row| out.copy_from_slice(row)).is_some()
    }
}

/// No code that can panic runs while a lock is held, so a poisoned one is sound.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::error::Error;

    fn requests(rows: &[u32]) -> Vec<RowRequest> {
        let request = |(&row, index)| RowRequest { row, index };
        rows.iter().zip(0..).map(request).collect()
    }

    /// Row r is one byte of r.
    fn read(rows: &[RowRequest], out: &mut [u8]) -> Result<()> {
        rows.iter()
            .for_each(|request| out[request.index as usize] = request.row as u8);
        Ok(())
    }

    fn waiting(flights: &Flights, row: u32) -> usize {
        let flying = lock(&flights.rows);
        flying
            .get(&row)
            .map_or(0, |(flight, _)| Arc::strong_count(flight))
    }

    /// Starts a fetch of rows 1 and 2, which goes on once somebody else waits for row 2, and ends
    /// with `end`; then another of rows 2 and 3. Returns what the second gave.
    fn two_look_ups(end: impl FnOnce() -> Result<()> + Send) -> (Result<u64>, Vec<u8>, Vec<u32>) {
        let flights = Flights::default();
        let (flying, take_off) = mpsc::channel();
        let (mut out, mut fetched) = (vec![0; 2], Vec::new());
        let mut end = Some(end);
        let result = thread::scope(|scope| {
            let first = scope.spawn(|| {
                let fetch = |rows: &[RowRequest], out: &mut [u8]| {
                    flying.send(()).unwrap();
                    // In the map twice (rows 1 and 2), here, and with whoever waits.
                    while waiting(&flights, 2) < 4 {
                        thread::yield_now();
                    }
                    end.take().map_or(Ok(()), |end| end())?;
                    read(rows, out)
                };
                let mut out = [0; 2];
                let call = || flights.fetch(requests(&[1, 2]), 1, &mut out, fetch);
                let _ = catch_unwind(AssertUnwindSafe(call));
            });
            take_off.recv().unwrap();
            let result = flights.fetch(requests(&[2, 3]), 1, &mut out, |rows, out| {
                fetched.extend(rows.iter().map(|request| request.row));
                read(rows, out)
            });
            first.join().unwrap();
            result
        });
        assert!(lock(&flights.rows).is_empty());
        (result, out, fetched)
    }

    #[test]
    fn a_row_in_flight_is_not_fetched_again() {
        let (brought, out, fetched) = two_look_ups(|| Ok(()));
        assert_eq!((brought.unwrap(), out, fetched), (1, vec![2, 3], vec![3]));
    }

    #[test]
    fn who_waited_for_a_failed_fetch_fetches_itself() {
        let (brought, out, fetched) = two_look_ups(|| Err(Error::argument("row", "gone")));
        assert_eq!(
            (brought.unwrap(), out, fetched),
            (0, vec![2, 3], vec![3, 2])
        );
    }

    #[test]
    fn who_waited_for_a_panicking_fetch_fetches_itself() {
        let (brought, out, fetched) = two_look_ups(|| panic!("as a store might"));
        assert_eq!(
            (brought.unwrap(), out, fetched),
            (0, vec![2, 3], vec![3, 2])
        );
    }

    #[test]
    fn an_error_is_passed_on_and_leaves_nothing_behind() {
        let flights = Flights::default();
        let mut out = [0; 1];
        let failing = |_: &[RowRequest], _: &mut [u8]| Err(Error::argument("row", "gone"));
        assert!(flights.fetch(requests(&[1]), 1, &mut out, failing).is_err());
        flights.fetch(requests(&[1]), 1, &mut out, read).unwrap();
        assert_eq!(out, [1]);
    }

    #[test]
    fn crossing_look_ups_never_wait_for_each_other() {
        let flights = Flights::default();
        let fetches = AtomicU64::new(0);
        thread::scope(|scope| {
            for thread in 0..4u32 {
                let (flights, fetches) = (&flights, &fetches);
                scope.spawn(move || {
                    for round in 0..2000u32 {
                        let rows = [0, 1, 2].map(|i| (round + (thread + 1) * i) % 5);
                        let mut rows = rows.to_vec();
                        rows.sort_unstable();
                        rows.dedup();
                        if thread % 2 == 1 {
                            rows.reverse();
                        }
                        let mut out = vec![9; rows.len()];
                        let fetch = |rows: &[RowRequest], out: &mut [u8]| {
                            fetches.fetch_add(rows.len() as u64, Ordering::Relaxed);
                            thread::yield_now();
                            read(rows, out)
                        };
                        flights.fetch(requests(&rows), 1, &mut out, fetch).unwrap();
                        assert!(
                            out.iter()
                                .zip(&rows)
                                .all(|(byte, row)| u32::from(*byte) == *row)
                        );
                    }
                });
            }
        });
        assert!(fetches.load(Ordering::Relaxed) > 0);
    }
}
