//! Plans, admission and giving way, without a model.
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

/// There is memory for everybody.
fn admit(scheduler: &mut Scheduler) {
    scheduler.admit(|_| Admission::Admitted { computed: 0 });
}

fn step(scheduler: &mut Scheduler) -> Vec<Planned> {
    admit(scheduler);
    let plan = scheduler.plan(usize::MAX);
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
    admit(&mut s);
    assert_eq!((s.running(), s.waiting(), s.youngest()), (1, 2, Some(A)));
    assert_eq!(s.push(SequenceId(3), 1), Err(Full), "a running one counts");
    s.remove(A);
    admit(&mut s);
    assert_eq!((s.running(), s.waiting(), s.youngest()), (1, 1, Some(B)));
}

#[test]
fn a_removed_sequence_frees_its_slot_at_once() {
    let mut s = scheduler(1, 2, 8);
    s.push(A, 5).unwrap();
    s.push(B, 1).unwrap();
    s.push(C, 1).unwrap();
    admit(&mut s);
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
fn prompts_beside_streams_are_bounded_apart() {
    let mut s = scheduler(3, 3, 100);
    s.push(A, 40).unwrap();
    admit(&mut s);
    let plan = s.plan(8);
    assert_eq!(plan, [planned(A, 40, true)], "nobody decodes yet");
    s.computed(plan[0]);
    s.push(B, 30).unwrap();
    admit(&mut s);
    assert_eq!(s.plan(8), [planned(A, 1, true), planned(B, 8, false)]);
}

#[test]
fn who_finds_no_memory_waits_and_nobody_overtakes() {
    let mut s = scheduler(3, 3, 100);
    for id in [A, B, C] {
        s.push(id, 5).unwrap();
    }
    let asked = std::cell::RefCell::new(Vec::new());
    s.admit(|id| {
        asked.borrow_mut().push(id);
        match id {
            B => Admission::NoMemory,
            _ => Admission::Admitted { computed: 3 },
        }
    });
    assert_eq!(*asked.borrow(), [A, B]);
    assert_eq!(s.plan(9), [planned(A, 2, true)]);
    s.set_paused(A, true);
    assert!(s.is_idle(), "B waits for memory");
    s.remove(A);
    assert!(!s.is_idle());
    s.admit(|id| match id {
        B => Admission::Later,
        _ => Admission::Admitted { computed: 0 },
    });
    assert_eq!(s.plan(9), [planned(C, 5, true)]);
    assert_eq!((s.running(), s.waiting()), (1, 1));
}

#[test]
fn who_gave_way_is_the_first_to_come_back() {
    let mut s = scheduler(2, 3, 100);
    for id in [A, B, C] {
        s.push(id, 5).unwrap();
    }
    step(&mut s);
    assert_eq!(s.youngest(), Some(B));
    s.preempt(B, 6);
    assert_eq!((s.running(), s.waiting()), (1, 2));
    assert_eq!(step(&mut s), [planned(A, 1, true), planned(B, 6, true)]);
}

#[test]
fn a_plan_stands_until_it_was_computed() {
    let mut s = scheduler(2, 1, 4);
    s.push(A, 9).unwrap();
    admit(&mut s);
    assert_eq!(s.plan(9), s.plan(9));
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
