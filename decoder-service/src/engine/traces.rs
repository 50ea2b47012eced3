//! The spans of a sequence that is over, of times that it keeps anyway.

use std::time::Instant;

use scone_service::traces::Value;

use crate::sequence::Sequence;

/// Tells of a sequence that is over. Outcomes other than `stop` and `length` are errors.
pub(super) fn ended(sequence: &Sequence, outcome: &'static str, now: Instant) {
    let request = sequence.request();
    let Some(trace) = &request.trace else { return };
    if !["stop", "length"].contains(&outcome) {
        trace.failed(outcome);
    }
    let index = || ("completion", Value::Count(u64::from(sequence.index())));
    let (started, first_token) = sequence.begun();
    trace.part(
        "queue",
        (request.arrived, started.unwrap_or(now)),
        vec![index()],
    );
    let Some(started) = started else { return };
    let usage = sequence.usage();
    let prefill = vec![
        index(),
        (
            "cached.tokens",
            Value::Count(u64::from(usage.cached_tokens)),
        ),
    ];
    trace.part("prefill", (started, first_token.unwrap_or(now)), prefill);
    let Some(first_token) = first_token else {
        return;
    };
    let steps = sequence.step_times();
    let decode = vec![
        index(),
        ("outcome", Value::Text(outcome.to_owned())),
        ("tokens", Value::Count(u64::from(usage.completion_tokens))),
        (
            "matched.positions",
            Value::Count(u64::from(usage.matched_positions)),
        ),
        // Of all steps that it took part in, those of its prompt included.
        ("lookup.ms", steps.lookup.into()),
        ("forward.ms", steps.forward.into()),
        ("sampling.ms", steps.sampling.into()),
    ];
    trace.part("decode", (first_token, now), decode);
}
