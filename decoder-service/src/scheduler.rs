//! Which sequences take part in the next step, and with how many tokens. A plain state machine:
//! no threads, no clock, no model.
//!
//! Continuous batching: sequences join and leave between steps. A step first takes one token of
//! every sequence that decodes, so that running streams never wait for a prompt; what is left of
//! the step's token budget goes to prompts, oldest first, cut into chunks where needed.

use std::collections::VecDeque;

/// Names a sequence inside one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// What bounds the scheduler.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most sequences in one step; each owns a KV cache.
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

#[derive(Debug)]
struct Entry {
    id: SequenceId,
    /// Tokens known and not computed yet.
    pending: usize,
    /// Left out of steps until resumed: its client does not keep up.
    paused: bool,
    /// The prompt is computed.
    decodes: bool,
}

/// See the [module documentation](self).
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    waiting: VecDeque<Entry>,
    /// In order of admission.
    running: Vec<Entry>,
}

impl Scheduler {
    /// An empty scheduler.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            waiting: VecDeque::new(),
            running: Vec::new(),
        }
    }

    /// Adds a sequence with a prompt of `tokens`, at least one, behind those that wait.
    ///
    /// # Errors
    /// When `max_batch + max_queue` sequences run and wait.
    pub fn push(&mut self, id: SequenceId, tokens: usize) -> Result<(), Full> {
        if self.waiting.len() + self.running.len() >= self.limits.max_batch + self.limits.max_queue
        {
            return Err(Full);
        }
        self.waiting.push_back(Entry {
            id,
            pending: tokens,
            paused: false,
            decodes: false,
        });
        Ok(())
    }

    /// Gives free slots of the batch to those that wait, in order; returns who got one.
    pub fn admit(&mut self) -> Vec<SequenceId> {
        let free = self.limits.max_batch.saturating_sub(self.running.len());
        let admitted: Vec<Entry> = self.waiting.drain(..free.min(self.waiting.len())).collect();
        let ids = admitted.iter().map(|entry| entry.id).collect();
        self.running.extend(admitted);
        ids
    }

    /// The next step; empty when nothing can run. Does not change the state: the same plan comes
    /// again until [`computed`](Self::computed) is told.
    pub fn plan(&self) -> Vec<Planned> {
        let mut budget = self.limits.max_step_tokens;
        let mut plan = Vec::new();
        let ready = || self.running.iter().filter(|entry| !entry.paused);
        for entry in ready()
            .filter(|entry| entry.decodes)
            .chain(ready().filter(|entry| !entry.decodes))
        {
            let tokens = entry.pending.min(budget);
            if tokens == 0 {
                continue;
            }
            budget -= tokens;
            plan.push(Planned {
                id: entry.id,
                tokens,
                samples: tokens == entry.pending,
            });
        }
        plan
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

    /// Leaves a running sequence out of steps, or takes it back in.
    pub fn set_paused(&mut self, id: SequenceId, paused: bool) {
        if let Some(entry) = self.entry(id) {
            entry.paused = paused;
        }
    }

    /// Forgets a sequence, whether it runs or waits. Its slot is free at once.
    pub fn remove(&mut self, id: SequenceId) {
        self.waiting.retain(|entry| entry.id != id);
        self.running.retain(|entry| entry.id != id);
    }

    /// Nothing can be computed until a sequence arrives, resumes or leaves.
    pub fn is_idle(&self) -> bool {
        let can_admit = !self.waiting.is_empty() && self.running.len() < self.limits.max_batch;
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
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const A: SequenceId = SequenceId(0);
    const B: SequenceId = SequenceId(1);
    const C: SequenceId = SequenceId(2);

    fn scheduler(max_batch: usize, max_queue: usize, max_step_tokens: usize) -> Scheduler {
        Scheduler::new(Limits {
            max_batch,
            max_queue,
            max_step_tokens,
        })
    }

    fn planned(id: SequenceId, tokens: usize, samples: bool) -> Planned {
        Planned {
            id,
            tokens,
            samples,
        }
    }

    fn step(scheduler: &mut Scheduler) -> Vec<Planned> {
        scheduler.admit();
        let plan = scheduler.plan();
        for &part in &plan {
            scheduler.computed(part);
        }
        plan
    }

    #[test]
    fn a_prompt_is_cut_into_chunks_and_then_decodes() {
        let mut s = scheduler(1, 1, 4);
        s.push(A, 9).unwrap();
        assert_eq!(step(&mut s), [planned(A, 4, false)]);
        assert_eq!(step(&mut s), [planned(A, 4, false)]);
        assert_eq!(step(&mut s), [planned(A, 1, true)]);
        assert_eq!(step(&mut s), [planned(A, 1, true)]);
    }

    #[test]
    fn decoding_goes_before_prompts_and_never_waits() {
        let mut s = scheduler(3, 3, 5);
        s.push(A, 2).unwrap();
        assert_eq!(step(&mut s), [planned(A, 2, true)]);
        s.push(B, 6).unwrap();
        s.push(C, 6).unwrap();
        assert_eq!(step(&mut s), [planned(A, 1, true), planned(B, 4, false)]);
        assert_eq!(
            step(&mut s),
            [
                planned(A, 1, true),
                planned(B, 2, true),
                planned(C, 2, false)
            ]
        );
        assert_eq!(
            step(&mut s),
            [
                planned(A, 1, true),
                planned(B, 1, true),
                planned(C, 3, false)
            ]
        );
    }

    #[test]
    fn the_last_token_of_a_prompt_samples_even_when_it_is_alone() {
        let mut s = scheduler(1, 1, 2);
        s.push(A, 3).unwrap();
        assert_eq!(step(&mut s), [planned(A, 2, false)]);
        assert_eq!(step(&mut s), [planned(A, 1, true)]);
    }

    #[test]
    fn the_queue_is_bounded_and_first_in_first_out() {
        let mut s = scheduler(1, 2, 8);
        s.push(A, 1).unwrap();
        s.push(B, 1).unwrap();
        s.push(C, 1).unwrap();
        assert_eq!(s.push(SequenceId(3), 1), Err(Full));
        assert_eq!(s.admit(), [A]);
        assert_eq!(s.admit(), []);
        assert_eq!(s.push(SequenceId(3), 1), Err(Full), "a running one counts");
        s.remove(A);
        assert_eq!(s.admit(), [B]);
        assert_eq!((s.running(), s.waiting()), (1, 1));
    }

    #[test]
    fn a_removed_sequence_frees_its_slot_at_once() {
        let mut s = scheduler(1, 2, 8);
        s.push(A, 5).unwrap();
        s.push(B, 1).unwrap();
        s.push(C, 1).unwrap();
        s.admit();
        s.remove(B);
        s.remove(A);
        assert_eq!(step(&mut s), [planned(C, 1, true)]);
    }

    #[test]
    fn a_paused_sequence_blocks_nobody_and_keeps_its_slot() {
        let mut s = scheduler(2, 1, 8);
        s.push(A, 3).unwrap();
        s.push(B, 3).unwrap();
        s.push(C, 3).unwrap();
        step(&mut s);
        s.set_paused(A, true);
        assert_eq!(step(&mut s), [planned(B, 1, true)]);
        assert_eq!(s.waiting(), 1);
        assert!(!s.is_idle());
        s.set_paused(B, true);
        assert!(s.is_idle(), "C waits, but there is no slot for it");
        s.set_paused(B, false);
        s.set_paused(A, false);
        assert_eq!(step(&mut s), [planned(A, 1, true), planned(B, 1, true)]);
    }

    #[test]
    fn a_plan_stands_until_it_was_computed() {
        let mut s = scheduler(2, 1, 4);
        s.push(A, 9).unwrap();
        s.admit();
        assert_eq!(s.plan(), s.plan());
    }

    #[test]
    fn every_prompt_gets_through_under_full_load() {
        let mut s = scheduler(4, 60, 5);
        for id in 0..40 {
            s.push(SequenceId(id), 1 + (id as usize * 7) % 23).unwrap();
        }
        let mut left = 40;
        let mut steps = 0;
        while left > 0 {
            for part in step(&mut s) {
                assert!(part.tokens > 0);
                if part.samples {
                    s.remove(part.id);
                    left -= 1;
                }
            }
            steps += 1;
            assert!(steps < 500, "no progress");
        }
        assert_eq!((s.running(), s.waiting()), (0, 0));
    }
}
