//! The spans of a request: what it waited for, and where its time went. They are made when a sequence
//! is over, of times that it keeps anyway.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use scone_embed_client::LookupTrace;
use scone_proto::TraceContext;
use scone_service::traces::{Kind, Span, Tracer, Value};

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
    /// The trace of a request that came at `began`, if it has one; it goes on with the caller's.
    pub fn of(
        &self,
        caller: Option<TraceContext>,
        began: Instant,
        (id, prompt_tokens, completions): (&str, usize, u32),
    ) -> Option<Arc<RequestTrace>> {
        let context = self.tracer.begin(caller)?;
        Some(Arc::new(RequestTrace {
            tracing: self.clone(),
            context,
            parent: caller.map(|caller| caller.span_id),
            began,
            id: id.to_owned(),
            prompt_tokens,
            completions,
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

    /// Tells of a part of it that is over.
    pub fn part(
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
