//! Ranks that MPI started, as in `mpirun -n 4 trainer train --mpi …`.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::environment::Universe;
use mpi::topology::{Communicator as _, SimpleCommunicator};
use mpi::traits::CommunicatorCollectives as _;

use super::Ranks;

/// Values of one call: MPI counts in 32 bits, and a rank should not need the gradients twice.
const MOST: usize = 1 << 24;

/// The processes of an MPI job. MPI ends when it is dropped.
pub struct Mpi {
    /// One call at a time, as `Threading::Serialized` asks for.
    world: Mutex<World>,
    rank: usize,
    count: usize,
}

struct World {
    all: SimpleCommunicator,
    _universe: Universe,
}

#[expect(
    unsafe_code,
    reason = "MPI's handles are pointers, which are not Send by themselves"
)]
// SAFETY: an MPI communicator is a handle of the process, not of a thread: with
// `Threading::Serialized`, which `join` makes sure of, any thread may use and free it as long as no
// two do at once, and the mutex around the only one sees to that. `tests/mpi.rs` uses it on a worker
// thread.
unsafe impl Send for World {}

impl Mpi {
    /// Joins the job that started this process.
    ///
    /// # Errors
    /// When MPI is in use already, or cannot be called from the thread that trains.
    pub fn join() -> Result<Self> {
        let (universe, threading) = mpi::initialize_with_threading(Threading::Serialized)
            .context("MPI is already in use in this process")?;
        ensure!(
            threading >= Threading::Serialized,
            "this MPI library allows calls from the main thread alone ({threading:?}), and training \
             runs on a worker thread"
        );
        let all = universe.world();
        Ok(Self {
            rank: all.rank() as usize,
            count: all.size() as usize,
            world: Mutex::new(World {
                all,
                _universe: universe,
            }),
        })
    }

    fn world(&self) -> MutexGuard<'_, World> {
        // A call that panicked left nothing half done on this side.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all ranks of the job with exit status 1.
    pub fn abort(&self) -> ! {
        self.world().all.abort(1)
    }
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mpi({} of {})", self.rank(), self.count())
    }
}

impl Ranks for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.count
    }

    fn add_up(&self, values: &mut [f32]) -> Result<()> {
        let world = self.world();
        let mut own = Vec::new();
        for values in values.chunks_mut(MOST) {
            own.clear();
            own.extend_from_slice(values);
            world
                .all
                .all_reduce_into(&own[..], values, SystemOperation::sum());
        }
        Ok(())
    }

    fn gather(&self, value: u64) -> Result<Vec<u64>> {
        let mut all = vec![0u64; self.count()];
        self.world().all.all_gather_into(&value, &mut all[..]);
        Ok(all)
    }
}
