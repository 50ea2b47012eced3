//! The loop of the engine thread.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc as std_mpsc,
    },
    time::{Duration, Instant},
};

use scone_model::{KV_BLOCK_POSITIONS, sampling::Sampler};
use tracing::{debug, error, info_span, trace};

use super::{
    EngineConfig, EngineParts, Submission,
    compute::{Compute, Computed},
    live::{Closing, Live, Place, Rows},
    mailbox::{LastPlace, Mailbox, State},
    traces,
};
use crate::{
    error::Error,
    kv::Pool,
    metrics::Metrics,
    places::Places,
    request::TableChoice,
    scheduler::{Admission, Planned, Scheduler, SequenceId},
    sequence::{Delta, FinishReason, Sequence},
    step_pace::StepPace,
    text::Decode,
};

/// How often clients that are behind are looked at while nothing else happens.
const POLL: Duration = Duration::from_millis(5);

/// A token on its way to a client.
struct Delivery {
    id: SequenceId,
    delta: Delta,
}

pub(super) struct Worker {
    config: EngineConfig,
    compute: Compute,
    decoder_of_text: Arc<dyn Decode>,
    scheduler: Scheduler,
    blocks: Pool,
    step_pace: StepPace,
    /// By id, which is the order of arrival.
    live: BTreeMap<SequenceId, Live>,
    closing: Vec<Closing>,
    incoming: std_mpsc::Receiver<Submission>,
    /// All handles are gone: finish what runs, then end.
    closed: bool,
    next_id: u64,
    metrics: Metrics,
    places: Places,
    /// End everything: the drain took too long.
    gave_up: Arc<AtomicBool>,
    /// Sequences that had a slot when the last step was planned.
    ran: usize,
}

impl Worker {
    pub(super) fn new(
        config: EngineConfig,
        parts: EngineParts,
        incoming: std_mpsc::Receiver<Submission>,
        places: Places,
        gave_up: Arc<AtomicBool>,
    ) -> Self {
        let blocks = parts.pool.blocks();
        parts.metrics.kv_blocks.set(blocks as i64);
        Self {
            config,
            decoder_of_text: parts.info.tokenizer.clone(),
            metrics: parts.metrics.clone(),
            compute: Compute::new(parts, config.on_lookup_failure),
            scheduler: Scheduler::new(config.limits),
            blocks: Pool::new(blocks, config.prefix_cache),
            step_pace: StepPace::new(config.step_target),
            live: BTreeMap::new(),
            closing: Vec::new(),
            incoming,
            closed: false,
            next_id: 0,
            places,
            gave_up,
            ran: 0,
        }
    }

    /// Works until all handles are dropped and all sequences are done.
    pub(super) fn run(mut self) {
        loop {
            self.receive();
            self.attend_to_clients();
            self.admit();
            let plan = self.plan();
            if plan.is_empty() {
                if self.closed && self.live.is_empty() && self.closing.is_empty() {
                    return;
                }
                continue;
            }
            self.step(&plan);
        }
    }

    /// Takes in new requests; sleeps when there is nothing to compute.
    fn receive(&mut self) {
        if self.scheduler.is_idle() {
            let idle = self.live.is_empty() && self.closing.is_empty();
            let received = if self.closed {
                std::thread::sleep(POLL);
                return;
            } else if idle {
                self.incoming.recv().map_err(|_| true)
            } else {
                let received = self.incoming.recv_timeout(POLL);
                received.map_err(|e| e == std_mpsc::RecvTimeoutError::Disconnected)
            };
            match received {
                Ok(submission) => self.enqueue(submission),
                Err(closed) => self.closed |= closed,
            }
        }
        loop {
            match self.incoming.try_recv() {
                Ok(submission) => self.enqueue(submission),
                Err(std_mpsc::TryRecvError::Empty) => return,
                Err(std_mpsc::TryRecvError::Disconnected) => {
                    self.closed = true;
                    return;
                }
            }
        }
    }

    fn enqueue(&mut self, submission: Submission) {
        let Submission {
            request,
            sender,
            mut permits,
            share,
            span,
        } = submission;
        let last = LastPlace::of(&sender);
        self.metrics
            .prompt_tokens
            .inc_by(request.prompt_ids.len() as u64);
        for index in 0..request.n {
            let Some(permit) = permits.split(1) else {
                error!("a request has fewer permits than completions");
                return;
            };
            let id = SequenceId(self.next_id);
            self.next_id += 1;
            let seed = request.seed.wrapping_add(u64::from(index));
            let decoder = self.decoder_of_text.clone();
            let sequence = Sequence::new(request.clone(), index, decoder);
            let mut live = Live {
                sampler: Sampler::new(request.sampling.clone(), seed, &request.prompt_ids),
                sequence,
                blocks: None,
                rows: Rows::NotChosen,
                ahead: None,
                mailbox: Mailbox::new(sender.clone(), last.clone()),
                place: Place::new(permit, share.clone()),
                span: info_span!(parent: &span, "sequence", index),
            };
            if let Some(echo) = live.sequence.echo() {
                live.mailbox.post(Ok(echo));
            }
            // A permit was taken at the door, so the queue has room.
            if self.scheduler.push(id, request.prompt_ids.len()).is_err() {
                live.mailbox.post(Err(Error::Internal));
                live.mailbox.flush(Instant::now());
                self.metrics.queue_depth.dec();
                continue;
            }
            self.live.insert(id, live);
        }
    }

    /// Ends sequences whose clients left, are late or do not read; pauses those that are behind.
    fn attend_to_clients(&mut self) {
        let now = Instant::now();
        let (config, places) = (&self.config, &self.places);
        self.closing
            .retain_mut(|closing| !closing.done(now, config, places));
        let gave_up = self.gave_up.load(Ordering::Relaxed);
        let (mut ended, mut stalled) = (Vec::new(), Vec::new());
        // Completions of one request share a channel: who waited longest goes first.
        let mut order: Vec<SequenceId> = self.live.keys().copied().collect();
        order.sort_by_key(|id| Reverse(self.live[id].mailbox.blocked_for(now)));
        for id in order {
            let Some(live) = self.live.get_mut(&id) else {
                continue;
            };
            match live.ended_by_client(now, config, places) {
                Ok(_) if gave_up => ended.push((id, Error::Draining)),
                Ok(state) => {
                    self.scheduler.set_paused(id, state == State::Blocked);
                    if live.mailbox.blocked_for(now) >= config.stall_time {
                        self.scheduler.step_aside(id);
                        stalled.push(id);
                    }
                }
                Err(error) => {
                    let request = live.sequence.request();
                    if let (Error::QueueTooLong { retry_after, .. }, Some(turn)) =
                        (&error, &request.turn)
                    {
                        places.waited_too_long(request.n, request.client, turn, *retry_after);
                    }
                    ended.push((id, error));
                }
            }
        }
        for (id, error) in ended {
            self.fail(id, error);
        }
        self.make_way(&stalled);
    }

    /// Takes the slots and KV blocks of sequences whose clients do not read, as long as others wait
    /// that could go on.
    fn make_way(&mut self, stalled: &[SequenceId]) {
        if stalled.is_empty() || self.scheduler.has_room() {
            return;
        }
        let waits = |live: &&Live| live.blocks.is_none() && !live.mailbox.is_blocked();
        let waiting = self.live.values().filter(waits).count();
        let running = |id: &&SequenceId| self.live.get(id).is_some_and(|l| l.blocks.is_some());
        let give_way: Vec<SequenceId> = stalled.iter().filter(running).copied().collect();
        for id in give_way.into_iter().take(waiting) {
            self.preempt(id);
        }
    }

    /// Gives slots and KV blocks to those that wait.
    fn admit(&mut self) {
        let Self {
            scheduler,
            live,
            blocks,
            compute,
            metrics,
            ..
        } = self;
        let mut unknown = Vec::new();
        scheduler.admit(|id| {
            // The other completions of a request share the blocks of its prompt, once computed.
            if blocks.shares() && follows_a_prompt(live, id) {
                return Admission::Later;
            }
            let Some(live) = live.get_mut(&id) else {
                return Admission::Later;
            };
            // It would stop again at once.
            if live.mailbox.is_blocked() {
                return Admission::Later;
            }
            let rows = match &live.rows {
                Rows::NotChosen => compute.rows_of(&live.sequence.request().table),
                chosen => Some(chosen.clone()),
            };
            let Some(rows) = rows else {
                unknown.push(id);
                return Admission::Later;
            };
            let table_id = rows.table().map(|table| table.table_id.as_str());
            let ids = live.sequence.ids();
            let of = match live.sequence.scores() {
                true => blocks.admit_uncached(ids, table_id),
                false => blocks.admit(ids, table_id),
            };
            let Some(of) = of else {
                return Admission::NoMemory;
            };
            let computed = of.cached();
            metrics.cached_positions.inc_by(computed as u64);
            live.sequence.begin_at(computed);
            live.rows = rows;
            live.blocks = Some(of);
            Admission::Admitted { computed }
        });
        for id in unknown {
            let table = self
                .live
                .get(&id)
                .map(|live| &live.sequence.request().table);
            if let Some(error) = table.map(TableChoice::unknown) {
                self.fail(id, error);
            }
        }
        self.show_depths();
    }

    /// The next step, with a KV block for every position of it; the youngest sequences give way
    /// when there are not enough.
    fn plan(&mut self) -> Vec<Planned> {
        loop {
            let plan = self.scheduler.plan(self.step_pace.prompt_tokens());
            let mut short = false;
            for planned in &plan {
                let Some(live) = self.live.get_mut(&planned.id) else {
                    continue;
                };
                let positions = live.sequence.computed() + planned.tokens;
                let Some(of) = live.blocks.as_mut() else {
                    continue;
                };
                if !self.blocks.grow(of, positions) {
                    short = true;
                    break;
                }
            }
            match self.scheduler.youngest() {
                Some(youngest) if short => self.preempt(youngest),
                _ => {
                    self.ran = self.scheduler.running();
                    return plan;
                }
            }
        }
    }

    fn preempt(&mut self, id: SequenceId) {
        let Some(live) = self.live.get_mut(&id) else {
            return;
        };
        if let Some(of) = live.blocks.take() {
            self.blocks.give_back(of);
        }
        live.ahead = None;
        live.sequence.begin_at(0);
        let tokens = live.sequence.ids().len();
        live.span
            .in_scope(|| debug!(tokens, "gives its KV blocks to older sequences"));
        self.scheduler.preempt(id, tokens);
        self.metrics.preemptions.inc();
        self.show_depths();
    }

    fn show_depths(&self) {
        let (waiting, running) = (self.scheduler.waiting(), self.scheduler.running());
        self.metrics.queue_depth.set(waiting as i64);
        self.metrics.running.set(running as i64);
        self.metrics.kv_blocks_used.set(self.blocks.used() as i64);
    }

    fn step(&mut self, plan: &[Planned]) {
        let began = Instant::now();
        let lives = &mut self.live;
        let mut segments: Vec<(Planned, &mut Live)> = Vec::with_capacity(plan.len());
        let mut by_id: HashMap<SequenceId, Planned> = plan.iter().map(|p| (p.id, *p)).collect();
        for (id, live) in lives.iter_mut() {
            if let Some(planned) = by_id.remove(id) {
                live.sequence.step_started(began);
                segments.push((planned, live));
            }
        }
        let outcomes = self.compute.step(segments);
        let took = began.elapsed();
        self.metrics.step_seconds.observe(took.as_secs_f64());
        let prompts = plan.iter().filter(|p| !self.scheduler.decodes(p.id));
        let (chunks, tokens) = prompts.fold((0, 0), |(n, t), p| (n + 1, t + p.tokens));
        self.step_pace.step_took(plan.len() - chunks, tokens, took);
        trace!(
            streams = plan.len() - chunks,
            prompt_tokens = tokens,
            ?took,
            "step"
        );
        let mut deliveries = Vec::with_capacity(plan.len());
        for (planned, outcome) in outcomes {
            match outcome {
                Ok(computed) => deliveries.extend(self.computed(planned, computed)),
                Err(error) => self.fail(planned.id, error),
            }
        }
        // Rows of the new tokens come while the tokens are sent.
        self.ask_for_chosen(&deliveries);
        let now = Instant::now();
        for Delivery { id, delta } in deliveries {
            self.deliver(id, delta, now);
        }
    }

    /// Asks for the rows of the tokens chosen, of sequences that go on.
    fn ask_for_chosen(&mut self, deliveries: &[Delivery]) {
        let goes_on = deliveries.iter().filter(|d| d.delta.finish.is_none());
        let goes_on: BTreeSet<SequenceId> = goes_on.map(|d| d.id).collect();
        let lives = self.live.iter_mut().filter(|(id, _)| goes_on.contains(id));
        let mut lives: Vec<&mut Live> = lives.map(|(_, live)| live).collect();
        self.compute.ask_for_chosen(&mut lives);
    }

    /// A part of a sequence was computed: takes in the token it chose, if it did. Returns what to
    /// tell its client.
    fn computed(&mut self, planned: Planned, computed: Computed) -> Option<Delivery> {
        let id = planned.id;
        self.scheduler.computed(planned);
        let live = self.live.get_mut(&id)?;
        if let Some(of) = &mut live.blocks {
            let (ids, done) = (live.sequence.ids(), live.sequence.computed());
            self.blocks.computed(of, ids, done, computed.sound);
        }
        let now = Instant::now();
        if !computed.prompt.is_empty() {
            live.mailbox.post(Ok(live.sequence.scored(computed.prompt)));
            live.mailbox.flush(now);
        }
        let token = computed.token?;
        if live.sequence.wants_no_tokens() {
            let delta = live.sequence.ended_with_prompt(now);
            return Some(Delivery { id, delta });
        }
        self.metrics.generated_tokens.inc();
        if live.sequence.usage().completion_tokens == 0 {
            let waited = now.saturating_duration_since(live.sequence.request().arrived);
            self.metrics
                .first_token_seconds
                .observe(waited.as_secs_f64());
        }
        match live.sequence.accept(token, now) {
            Ok(delta) => Some(Delivery { id, delta }),
            Err(error) => {
                error!(%error, "decoding of text failed");
                self.fail(id, error.into());
                None
            }
        }
    }

    /// Sends a token to its client.
    fn deliver(&mut self, id: SequenceId, mut delta: Delta, now: Instant) {
        let Some(live) = self.live.get_mut(&id) else {
            return;
        };
        let outcome = delta.finish.as_mut().map(|finish| {
            finish.table = live.rows.table().cloned();
            match finish.reason {
                FinishReason::StopString(_) | FinishReason::StopToken(_) => "stop",
                FinishReason::Length => "length",
            }
        });
        live.mailbox.post(Ok(delta));
        live.mailbox.flush(now);
        if let Some(outcome) = outcome {
            self.end(id, outcome);
        }
    }

    fn fail(&mut self, id: SequenceId, error: Error) {
        let outcome = error.outcome();
        if let Some(live) = self.live.get_mut(&id) {
            live.span
                .in_scope(|| debug!(error = %error, outcome, "generation ended early"));
            live.mailbox.post(Err(error));
        }
        self.end(id, outcome);
    }

    /// Frees the slot of the batch and the KV blocks at once.
    fn end(&mut self, id: SequenceId, outcome: &'static str) {
        self.scheduler.remove(id);
        let Some(mut live) = self.live.remove(&id) else {
            return;
        };
        if let Some(of) = live.blocks.take() {
            self.blocks.give_back(of);
        }
        self.show_depths();
        let now = Instant::now();
        self.metrics.ended(outcome);
        traces::ended(&live.sequence, outcome, now);
        let usage = live.sequence.usage();
        live.span.in_scope(|| {
            debug!(
                outcome,
                prompt_tokens = usage.prompt_tokens,
                completion_tokens = usage.completion_tokens,
                matched_positions = usage.matched_positions,
                "generation ended"
            );
        });
        let (started, _) = live.sequence.begun();
        if let Some(started) = started.filter(|_| !live.place.is_beside()) {
            // Fewer than the batch has slots for where KV blocks are what is short.
            let among = match self.scheduler.waiting() {
                0 => self.config.limits.max_batch,
                _ => self.ran,
            };
            let after = now.saturating_duration_since(started);
            self.places.slot_freed(after, among);
        }
        if live.mailbox.flush(now) == State::Blocked {
            self.closing.push(Closing {
                mailbox: live.mailbox,
                deadline: live.sequence.request().deadline,
                tokens: usage.completion_tokens,
                place: live.place,
            });
        }
    }
}

/// Whether another completion of the same request is computing what this one can share of their
/// prompt.
fn follows_a_prompt(live: &BTreeMap<SequenceId, Live>, id: SequenceId) -> bool {
    let Some(follower) = live.get(&id) else {
        return false;
    };
    let request = follower.sequence.request();
    let shared =
        request.prompt_ids.len().saturating_sub(1) / KV_BLOCK_POSITIONS * KV_BLOCK_POSITIONS;
    live.range(..id).rev().any(|(_, other)| {
        Arc::ptr_eq(other.sequence.request(), request)
            && other.blocks.is_some()
            && other.sequence.computed() < shared
    })
}
