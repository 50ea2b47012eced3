//! Traces: which request spent its time where, over both services. Spans go to a collector over OTLP
//! (gRPC) when one is named, and nothing is kept, counted or allocated when none is.
//!
//! A service says what a span was when it is over: there is no current span, since a step of the
//! decoder works on many requests at once and a stream of look-ups outlives them all.

mod args;
mod export;

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use scone_proto::{
    TraceContext,
    otlp::v1::{self as otlp, any_value, span::SpanKind, status::StatusCode},
};
use tokio::sync::mpsc;

pub use args::OtlpArgs;
pub use export::Exporting;

/// Spans that wait to be sent. When there are more, those that come are dropped and counted.
const QUEUE: usize = 4096;

/// Records spans, or does nothing. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Recorder>>);

#[derive(Debug)]
struct Recorder {
    spans: mpsc::Sender<otlp::Span>,
    dropped: Arc<AtomicU64>,
    /// Share of the traces begun here that are recorded, 0 to 1.
    sample: f64,
    /// Makes ids that nobody else makes.
    ids: RandomState,
    next_id: AtomicU64,
}

/// Something that took time, when it is over.
#[derive(Clone, Debug)]
pub struct Span {
    /// What it was.
    pub name: &'static str,
    /// Whose.
    pub kind: Kind,
    /// Its own name.
    pub context: TraceContext,
    /// The span it is a part of.
    pub parent: Option<u64>,
    /// When it began.
    pub began: Instant,
    /// When it was over.
    pub ended: Instant,
    /// Facts.
    pub attributes: Vec<(&'static str, Value)>,
    /// What went wrong, if it did.
    pub error: Option<String>,
}

/// Which side of a call a span is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// None.
    Internal,
    /// Who is called.
    Server,
    /// Who calls.
    Client,
}

/// A fact about a span.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A name.
    Text(String),
    /// A number.
    Count(u64),
    /// A time, in milliseconds.
    Millis(f64),
}

impl From<Duration> for Value {
    fn from(time: Duration) -> Self {
        Self::Millis(time.as_secs_f64() * 1e3)
    }
}

impl Tracer {
    /// A tracer whose spans an exporter takes, and what it counts those that it could not keep in.
    fn new(sample: f64) -> (Self, mpsc::Receiver<otlp::Span>, Arc<AtomicU64>) {
        let (spans, receiver) = mpsc::channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let recorder = Recorder {
            spans,
            dropped: Arc::clone(&dropped),
            sample,
            ids: RandomState::new(),
            next_id: AtomicU64::new(0),
        };
        (Self(Some(Arc::new(recorder))), receiver, dropped)
    }

    /// Whether spans are recorded at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Names the first span of a request here: a part of the caller's trace if there is one, which then
    /// says whether it is recorded, else the first of a trace. `None` when it is not recorded.
    #[must_use]
    pub fn begin(&self, caller: Option<TraceContext>) -> Option<TraceContext> {
        let recorder = self.0.as_ref()?;
        let Some(caller) = caller else {
            let trace_id = u128::from(recorder.id()) << 64 | u128::from(recorder.id());
            let context = TraceContext {
                trace_id,
                span_id: recorder.id(),
                sampled: true,
            };
            // The lower half decides, as other tracers do: 53 bits make an exact number.
            let drawn = (trace_id as u64 >> 11) as f64 / (1u64 << 53) as f64;
            return (drawn < recorder.sample).then_some(context);
        };
        self.child(caller)
    }

    /// Names a span that is a part of `parent`; `None` when it is not recorded.
    #[must_use]
    pub fn child(&self, parent: TraceContext) -> Option<TraceContext> {
        let recorder = self.0.as_ref().filter(|_| parent.sampled)?;
        Some(TraceContext {
            span_id: recorder.id(),
            ..parent
        })
    }

    /// Hands a span on. Never waits: when too many wait to be sent, it is dropped.
    pub fn record(&self, span: Span) {
        let Some(recorder) = &self.0 else { return };
        let span = encoded(span, (Instant::now(), SystemTime::now()));
        if recorder.spans.try_send(span).is_err() {
            recorder.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Recorder {
    /// A number that is not 0, and no other.
    fn id(&self) -> u64 {
        loop {
            let number = self.next_id.fetch_add(1, Ordering::Relaxed);
            let id = self.ids.hash_one(number);
            if id != 0 {
                return id;
            }
        }
    }
}

/// A span as it is sent; `now` is the same moment by both clocks. Taken anew each time, since they drift
/// apart, and one of them is set.
fn encoded(span: Span, now: (Instant, SystemTime)) -> otlp::Span {
    let attributes = span.attributes.into_iter();
    let kind = match span.kind {
        Kind::Internal => SpanKind::Internal,
        Kind::Server => SpanKind::Server,
        Kind::Client => SpanKind::Client,
    };
    otlp::Span {
        trace_id: span.context.trace_id.to_be_bytes().to_vec(),
        span_id: span.context.span_id.to_be_bytes().to_vec(),
        parent_span_id: span
            .parent
            .map_or_else(Vec::new, |id| id.to_be_bytes().to_vec()),
        name: span.name.to_owned(),
        kind: kind.into(),
        start_time_unix_nano: unix_nanos(span.began, now),
        end_time_unix_nano: unix_nanos(span.ended.max(span.began), now),
        attributes: attributes
            .map(|(key, value)| attribute(key, value))
            .collect(),
        status: span.error.map(|message| otlp::Status {
            message,
            code: StatusCode::Error.into(),
        }),
    }
}

fn unix_nanos(at: Instant, (instant, time): (Instant, SystemTime)) -> u64 {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let now = nanos(time.duration_since(UNIX_EPOCH).unwrap_or_default());
    let (before, after) = (
        instant.saturating_duration_since(at),
        at.saturating_duration_since(instant),
    );
    now.saturating_sub(nanos(before))
        .saturating_add(nanos(after))
}

fn attribute(key: &str, value: Value) -> otlp::KeyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::StringValue(text),
        Value::Count(count) => any_value::Value::IntValue(count.try_into().unwrap_or(i64::MAX)),
        Value::Millis(millis) => any_value::Value::DoubleValue(millis),
    };
    otlp::KeyValue {
        key: key.to_owned(),
        value: Some(otlp::AnyValue { value: Some(value) }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn span(context: TraceContext) -> Span {
        let now = Instant::now();
        Span {
            name: "work",
            kind: Kind::Server,
            context,
            parent: Some(5),
            began: now,
            ended: now + Duration::from_millis(3),
            attributes: vec![("rows", Value::Count(2))],
            error: Some("gone".to_owned()),
        }
    }

    #[test]
    fn callers_decide_on_their_traces_and_the_share_on_others() {
        let caller = TraceContext {
            trace_id: 7,
            span_id: 9,
            sampled: true,
        };
        let (all, ..) = Tracer::new(1.0);
        let (none, ..) = Tracer::new(0.0);
        for tracer in [&all, &none] {
            let own = tracer.begin(Some(caller)).unwrap();
            assert!(own.trace_id == 7 && own.span_id != 9 && own.sampled);
            let unsampled = TraceContext {
                sampled: false,
                ..caller
            };
            assert_eq!(tracer.begin(Some(unsampled)), None);
        }
        let (first, second) = (all.begin(None).unwrap(), all.begin(None).unwrap());
        assert_ne!(first.trace_id, second.trace_id);
        assert_eq!(none.begin(None), None);
        let (half, ..) = Tracer::new(0.5);
        let sampled = (0..1000).filter(|_| half.begin(None).is_some()).count();
        assert!((400..600).contains(&sampled), "{sampled} of 1000");
        let off = Tracer::default();
        assert!(!off.is_on() && off.begin(Some(caller)).is_none());
        off.record(span(caller));
    }

    #[test]
    fn a_span_is_written_with_all_it_has_and_dropped_when_too_many_wait() {
        let (tracer, mut spans, dropped) = Tracer::new(1.0);
        let context = tracer.begin(None).unwrap();
        (0..QUEUE + 3).for_each(|_| tracer.record(span(context)));
        assert_eq!(dropped.load(Ordering::Relaxed), 3);
        let written = spans.try_recv().unwrap();
        assert_eq!(written.trace_id, context.trace_id.to_be_bytes());
        assert_eq!(written.span_id, context.span_id.to_be_bytes());
        assert_eq!(written.parent_span_id, 5u64.to_be_bytes());
        let took = written.end_time_unix_nano - written.start_time_unix_nano;
        assert_eq!(took, 3_000_000);
        assert_eq!(written.kind(), SpanKind::Server);
        assert_eq!(written.status.unwrap().message, "gone");
        assert_eq!(written.attributes, [attribute("rows", Value::Count(2))]);
    }

    #[test]
    fn times_are_those_of_the_clock_as_it_is_when_a_span_is_over() {
        let (now, set) = (Instant::now(), UNIX_EPOCH + Duration::from_secs(1_000_000));
        let context = TraceContext {
            trace_id: 7,
            span_id: 9,
            sampled: true,
        };
        let over = Span {
            began: now - Duration::from_secs(3),
            ended: now,
            ..span(context)
        };
        for moved in [0, 3600] {
            let written = encoded(over.clone(), (now, set + Duration::from_secs(moved)));
            let ended = (1_000_000 + moved) * 1_000_000_000;
            assert_eq!(written.end_time_unix_nano, ended);
            assert_eq!(written.start_time_unix_nano, ended - 3_000_000_000);
        }
        let before_all = unix_nanos(now, (now + Duration::from_secs(3), UNIX_EPOCH));
        assert_eq!(before_all, 0);
    }
}
