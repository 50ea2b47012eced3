//! Which sequences take part in the next step, and with how many tokens. A plain state machine:
//! no threads, no clock, no model.
//!
//! Continuous batching: sequences join and leave between steps. A step first takes one token of
//! every sequence that decodes, so that running streams never wait for a prompt; what is left of
//! the step's token budget goes to prompts, first those that got their slot first, cut into chunks where needed.

use std::collections::VecDeque;

/// Names a sequence inside one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// What bounds the scheduler.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most sequences in one step; each has KV blocks.
    pub max_batch: usize,
    /// Most sequences that wait for a slot in the batch. When it is full, [`Scheduler::push`] refuses.
    pub max_queue: usize,
    /// Most tokens in one step. Above `max_batch`, so that prompts go on when the batch is full.
    pub max_step_tokens: usize,
}

/// The part of a sequence that a step computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Which sequence.
    pub id: SequenceId,
    /// How many of its next tokens.
    pub tokens: usize,
    /// Whether these are the last known ones, so that the step's logits choose the next token.
    pub samples: bool,
}

/// No room: as many sequences run and wait as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("as many sequences run and wait as may")]
pub struct Full;

/// Whether a sequence can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Yes; so many of its tokens need not be computed.
    Admitted {
        /// Always less than it has.
        computed: usize,
    },
    /// Not now; those behind it may.
    Later,
    /// Not now, and nobody behind it either.
    NoMemory,
}

#[derive(Debug)]
struct Entry {
    id: SequenceId,
    /// Tokens known and not computed yet.
    pending: usize,
    /// Left out of steps until resumed: its client does not keep up.
    paused: bool,
    /// The prompt is computed.
    decodes: bool,
    /// It takes nobody's place in the queue: its client did not read for long.
    aside: bool,
}

impl Entry {
    fn part(&self, tokens: usize) -> Planned {
        Planned {
            id: self.id,
            tokens,
            samples: tokens == self.pending,
        }
    }
}

/// See the [module documentation](self).
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    waiting: VecDeque<Entry>,
    /// In order of admission.
    running: Vec<Entry>,
    /// Somebody with a free slot had to wait, for memory or for another sequence.
    stuck: bool,
}

impl Scheduler {
    /// An empty scheduler.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            waiting: VecDeque::new(),
            running: Vec::new(),
            stuck: false,
        }
    }

    /// Adds a sequence with a prompt of `tokens`, at least one, behind those that wait.
    ///
    /// # Errors
    /// When `max_batch + max_queue` sequences run and wait, but for those that stepped aside.
    pub fn push(&mut self, id: SequenceId, tokens: usize) -> Result<(), Full> {
        let all = self.waiting.iter().chain(&self.running);
        let count = all.filter(|entry| !entry.aside).count();
        if count >= self.limits.max_batch + self.limits.max_queue {
            return Err(Full);
        }
        self.waiting.push_back(Entry {
            id,
            pending: tokens,
            paused: false,
            decodes: false,
            aside: false,
        });
        Ok(())
    }

    /// Gives free slots of the batch to those that wait, in order, as far as `admit` finds memory
    /// for them.
    pub fn admit(&mut self, mut admit: impl FnMut(SequenceId) -> Admission) {
        self.stuck = false;
        let mut held = VecDeque::new();
        while self.running.len() < self.limits.max_batch {
            let Some(mut entry) = self.waiting.pop_front() else {
                break;
            };
            match admit(entry.id) {
                Admission::Admitted { computed } => {
                    entry.pending = entry.pending.saturating_sub(computed).max(1);
                    self.running.push(entry);
                }
                Admission::Later => held.push_back(entry),
                Admission::NoMemory => {
                    held.push_back(entry);
                    break;
                }
            }
        }
        self.stuck = !held.is_empty();
        held.append(&mut self.waiting);
        self.waiting = held;
    }

    /// The next step, with at most `prompt_tokens` of prompts beside sequences that decode; empty
    /// when nothing can run. Does not change the state: the same plan comes again until
    /// [`computed`](Self::computed) is told.
    pub fn plan(&self, prompt_tokens: usize) -> Vec<Planned> {
        let mut budget = self.limits.max_step_tokens;
        let mut plan = Vec::new();
        let ready = || self.running.iter().filter(|entry| !entry.paused);
        for entry in ready().filter(|entry| entry.decodes) {
            if budget > 0 {
                budget -= 1;
                plan.push(entry.part(1));
            }
        }
        if !plan.is_empty() {
            budget = budget.min(prompt_tokens);
        }
        for entry in ready().filter(|entry| !entry.decodes) {
            let tokens = entry.pending.min(budget);
            if tokens > 0 {
                budget -= tokens;
                plan.push(entry.part(tokens));
            }
        }
        plan
    }

    /// Takes a running sequence's slot away; it waits again, where it came from, with all its
    /// `tokens` to compute.
    pub fn preempt(&mut self, id: SequenceId, tokens: usize) {
        let Some(at) = self.running.iter().position(|entry| entry.id == id) else {
            return;
        };
        let aside = self.running.remove(at).aside;
        let at = self.waiting.partition_point(|entry| entry.id < id);
        self.waiting.insert(
            at,
            Entry {
                id,
                pending: tokens,
                paused: false,
                decodes: false,
                aside,
            },
        );
    }

    /// The running sequence that came last.
    pub fn youngest(&self) -> Option<SequenceId> {
        self.running.iter().map(|entry| entry.id).max()
    }

    /// A step computed this part of a sequence. When it `samples`, one new token is pending.
    pub fn computed(&mut self, planned: Planned) {
        if let Some(entry) = self.entry(planned.id) {
            entry.pending -= planned.tokens.min(entry.pending);
            if planned.samples {
                entry.pending = 1;
                entry.decodes = true;
            }
        }
    }

    /// Whether the prompt of a running sequence was computed before.
    pub fn decodes(&self, id: SequenceId) -> bool {
        self.running
            .iter()
            .any(|entry| entry.id == id && entry.decodes)
    }

    /// Leaves a running sequence out of steps, or takes it back in.
    pub fn set_paused(&mut self, id: SequenceId, paused: bool) {
        if let Some(entry) = self.entry(id) {
            entry.paused = paused;
        }
    }

    /// Counts a sequence no more among those that [`push`](Self::push) has room for.
    pub fn step_aside(&mut self, id: SequenceId) {
        let mut all = self.waiting.iter_mut().chain(&mut self.running);
        if let Some(entry) = all.find(|entry| entry.id == id) {
            entry.aside = true;
        }
    }

    /// Whether a slot of the batch is free, and the last that had one did not lack memory.
    pub fn has_room(&self) -> bool {
        self.running.len() < self.limits.max_batch && !self.stuck
    }

    /// Forgets a sequence, whether it runs or waits. Its slot is free at once.
    pub fn remove(&mut self, id: SequenceId) {
        self.waiting.retain(|entry| entry.id != id);
        self.running.retain(|entry| entry.id != id);
        self.stuck = false;
    }

    /// Nothing can be computed until a sequence arrives, resumes or leaves.
    pub fn is_idle(&self) -> bool {
        let slots = self.running.len() < self.limits.max_batch;
        let can_admit = !self.waiting.is_empty() && slots && !self.stuck;
        !can_admit && self.running.iter().all(|entry| entry.paused)
    }

    /// Sequences with a slot in the batch.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences without.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn entry(&mut self, id: SequenceId) -> Option<&mut Entry> {
        self.running.iter_mut().find(|entry| entry.id == id)
    }
}

#[cfg(test)]
mod tests;
