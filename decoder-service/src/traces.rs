//! The spans of a request: what it waited for, and where its time went. They are made when a sequence
//! is over, of times that it keeps anyway.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use scone_embed_client::LookupTrace;
use scone_proto::TraceContext;
use scone_service::traces::{Kind, Span, Tracer, Value};

use crate::{request::Request, sequence::Sequence};

/// How requests are traced.
#[derive(Clone, Debug, Default)]
pub struct Tracing {
    /// Where spans go.
    pub tracer: Tracer,
    /// Whether the look-ups of every decoding step have spans, not only those of prompts.
    pub every_step: bool,
}

/// A request that is traced. When nobody has it any more, it is over.
#[derive(Debug)]
pub struct RequestTrace {
    tracing: Tracing,
    /// The request's own span.
    context: TraceContext,
    /// The caller's.
    parent: Option<u64>,
    began: Instant,
    id: String,
    prompt_tokens: usize,
    completions: u32,
    /// How the first completion ended that did not end as it should.
    failed: OnceLock<&'static str>,
}

impl Tracing {
    /// The trace of a request, if it has one.
    pub fn of(&self, request: &Request) -> Option<Arc<RequestTrace>> {
        let context = self.tracer.begin(request.caller)?;
        Some(Arc::new(RequestTrace {
            tracing: self.clone(),
            context,
            parent: request.caller.map(|caller| caller.span_id),
            began: request.arrived,
            id: request.id.clone(),
            prompt_tokens: request.prompt_ids.len(),
            completions: request.n,
            failed: OnceLock::new(),
        }))
    }
}

impl RequestTrace {
    /// It, or a completion of it, ended otherwise than it should.
    pub fn failed(&self, outcome: &'static str) {
        // The first is told.
        let _ = self.failed.set(outcome);
    }

    /// The name of a look-up's span, when it is to have one.
    pub fn look_up(&self, decodes: bool) -> Option<LookupTrace> {
        if decodes && !self.tracing.every_step {
            return None;
        }
        Some(LookupTrace {
            span: self.tracing.tracer.child(self.context)?,
            parent: self.context.span_id,
        })
    }

    fn part(
        &self,
        name: &'static str,
        (began, ended): (Instant, Instant),
        attributes: Vec<(&'static str, Value)>,
    ) {
        let Some(context) = self.tracing.tracer.child(self.context) else {
            return;
        };
        self.tracing.tracer.record(Span {
            name,
            kind: Kind::Internal,
            context,
            parent: Some(self.context.span_id),
            began,
            ended,
            attributes,
            error: None,
        });
    }
}

impl Drop for RequestTrace {
    fn drop(&mut self) {
        self.tracing.tracer.record(Span {
            name: "generate",
            kind: Kind::Server,
            context: self.context,
            parent: self.parent,
            began: self.began,
            ended: Instant::now(),
            attributes: vec![
                ("request.id", Value::Text(std::mem::take(&mut self.id))),
                ("prompt.tokens", Value::Count(self.prompt_tokens as u64)),
                ("completions", Value::Count(u64::from(self.completions))),
            ],
            error: self.failed.get().map(|outcome| (*outcome).to_owned()),
        });
    }
}

/// Tells of a sequence that is over. Outcomes other than `stop` and `length` are errors.
pub fn ended(sequence: &Sequence, outcome: &'static str, now: Instant) {
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
