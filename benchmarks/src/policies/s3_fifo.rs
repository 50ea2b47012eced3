//! S3-FIFO: three queues.

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use super::policy::Policy;

/// Where [`S3Fifo`] has a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    Nowhere,
    Small,
    Main,
    Ghost,
}

/// Three queues (Yang et al., SOSP 2023): new rows wait in a small one, and reach the main one only
/// if they are asked for again, there or soon after they have left.
#[derive(Debug)]
pub struct S3Fifo {
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    ghost: VecDeque<u32>,
    /// For each row of the table, where it is and how often it was asked for there, up to 3.
    state: Vec<(Queue, u8)>,
    capacity: usize,
    small_capacity: usize,
}

impl S3Fifo {
    /// Keeps `capacity` of `table_rows` rows, a tenth of them in the small queue.
    pub fn new(capacity: NonZeroUsize, table_rows: usize) -> Self {
        Self {
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghost: VecDeque::new(),
            state: vec![(Queue::Nowhere, 0); table_rows],
            capacity: capacity.get(),
            small_capacity: (capacity.get() / 10).max(1),
        }
    }

    fn make_room(&mut self) {
        while self.small.len() + self.main.len() >= self.capacity {
            if self.small.len() >= self.small_capacity || self.main.is_empty() {
                self.leave_small();
            } else {
                self.leave_main();
            }
        }
    }

    fn leave_small(&mut self) {
        let Some(row) = self.small.pop_front() else {
            return;
        };
        let state = &mut self.state[row as usize];
        if state.1 > 1 {
            *state = (Queue::Main, 0);
            self.main.push_back(row);
            return;
        }
        *state = (Queue::Ghost, 0);
        self.ghost.push_back(row);
        if self.ghost.len() > self.capacity - self.small_capacity
            && let Some(forgotten) = self.ghost.pop_front()
        {
            let state = &mut self.state[forgotten as usize];
            // It may have come back to a queue since.
            if state.0 == Queue::Ghost {
                *state = (Queue::Nowhere, 0);
            }
        }
    }

    fn leave_main(&mut self) {
        let Some(row) = self.main.pop_front() else {
            return;
        };
        let state = &mut self.state[row as usize];
        if state.1 > 0 {
            state.1 -= 1;
            self.main.push_back(row);
        } else {
            *state = (Queue::Nowhere, 0);
        }
    }
}

impl Policy for S3Fifo {
    fn access(&mut self, row: u32) -> bool {
        let state = &mut self.state[row as usize];
        if matches!(state.0, Queue::Small | Queue::Main) {
            state.1 = (state.1 + 1).min(3);
            return true;
        }
        self.make_room();
        // Making room may have forgotten the ghost.
        let queue = match self.state[row as usize].0 {
            Queue::Ghost => Queue::Main,
            _ => Queue::Small,
        };
        self.state[row as usize] = (queue, 0);
        match queue {
            Queue::Main => self.main.push_back(row),
            _ => self.small.push_back(row),
        }
        false
    }
}
