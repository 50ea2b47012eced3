//! What Prometheus sees, under the prefix `scone_embed_`.

mod tables;

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use scone_fgram::MAX_N;
use scone_service::connections::ConnectionMetrics;
use tonic::Code;

use self::tables::TableMetrics;
use crate::tables::Tables;

type LabelledCounter = Family<[(&'static str, &'static str); 1], Counter>;

/// Handles of the metrics that requests update. Cheap to clone; clones share the values.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    requests: LabelledCounter,
    positions: Counter,
    /// By match length; the label pair of each length is resolved once, not per request.
    matched: [Counter; MAX_N + 1],
    rows: Counter,
    lookup_seconds: Histogram,
    /// Lookup streams open now.
    pub streams_open: Gauge,
    /// Bytes of rows being looked up or sent now.
    pub inflight_bytes: Gauge,
    /// Connections open, refused and aged.
    pub connections: ConnectionMetrics,
    /// Connections cut because their clients did not read while others were refused.
    pub stalled: Counter,
    switches: LabelledCounter,
}

/// How a look at `--table` ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum SwitchOutcome {
    /// Another table is current now.
    Switched,
    /// It is the table that is served already.
    Unchanged,
    /// It cannot be served.
    Refused,
}

impl Metrics {
    /// Registers everything, the hot set of `tables` included.
    pub(crate) fn register(registry: &mut Registry, tables: Arc<Tables>) -> Self {
        let registry = registry.sub_registry_with_prefix("scone_embed");
        let matched = LabelledCounter::default();
        let metrics = Self {
            requests: Family::default(),
            positions: Counter::default(),
            matched: std::array::from_fn(|n| {
                // Lengths 0 and 1 never match, so they must not appear as label values.
                match n {
                    0 | 1 => Counter::default(),
                    n => matched.get_or_create(&[("length", LENGTHS[n])]).clone(),
                }
            }),
            rows: Counter::default(),
            // 1 us to 4 s, a factor of 2 apart.
            lookup_seconds: Histogram::new(exponential_buckets(1e-6, 2.0, 23)),
            streams_open: Gauge::default(),
            inflight_bytes: Gauge::default(),
            connections: ConnectionMetrics::default(),
            stalled: Counter::default(),
            switches: Family::default(),
        };
        metrics.register_requests(registry);
        metrics.connections.register(registry);
        registry.register(
            "connections_stalled",
            "Connections cut because answers were not read while others were refused",
            metrics.stalled.clone(),
        );
        registry.register(
            "table_switches",
            "Looks at --table after SIGHUP, by outcome (switched, unchanged or refused)",
            metrics.switches.clone(),
        );
        registry.register(
            "matched_positions",
            "Positions with a match, by length of the f-gram",
            matched,
        );
        registry.register_collector(Box::new(TableMetrics { tables }));
        metrics
    }

    fn register_requests(&self, registry: &mut Registry) {
        registry.register(
            "requests",
            "Look-ups answered or refused, by outcome (ok or the gRPC code)",
            self.requests.clone(),
        );
        registry.register(
            "positions",
            "Positions answered, matched or not",
            self.positions.clone(),
        );
        registry.register("rows", "Rows sent, repeats once", self.rows.clone());
        registry.register_with_unit(
            "lookup",
            "Time of a look-up, from the checked request to its rows",
            Unit::Seconds,
            self.lookup_seconds.clone(),
        );
        registry.register(
            "streams_open",
            "Lookup streams open now",
            self.streams_open.clone(),
        );
        registry.register(
            "inflight_bytes",
            "Bytes of rows being looked up, or waiting for their client to read them",
            self.inflight_bytes.clone(),
        );
    }

    /// Counts one answered look-up.
    pub(crate) fn answered(&self, match_lengths: &[u8], rows: usize, took: Duration) {
        self.outcome(Code::Ok);
        self.positions.inc_by(match_lengths.len() as u64);
        self.rows.inc_by(rows as u64);
        self.lookup_seconds.observe(took.as_secs_f64());
        let mut lengths = [0_u64; MAX_N + 1];
        for &n in match_lengths {
            lengths[usize::from(n).min(MAX_N)] += 1;
        }
        for (counter, count) in self.matched.iter().zip(lengths).skip(2) {
            counter.inc_by(count);
        }
    }

    /// Counts one request by how it ended.
    pub(crate) fn outcome(&self, code: Code) {
        self.requests
            .get_or_create(&[("outcome", outcome_label(code))])
            .inc();
    }

    /// Counts one look at `--table`.
    pub(crate) fn switched(&self, outcome: SwitchOutcome) {
        let label = match outcome {
            SwitchOutcome::Switched => "switched",
            SwitchOutcome::Unchanged => "unchanged",
            SwitchOutcome::Refused => "refused",
        };
        self.switches.get_or_create(&[("outcome", label)]).inc();
    }
}

const LENGTHS: [&str; MAX_N + 1] = ["0", "1", "2", "3", "4", "5", "6", "7", "8"];

/// Only the codes that [`crate::error::Error::code`] gives, so the label stays bounded.
fn outcome_label(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::InvalidArgument => "invalid_argument",
        Code::NotFound => "not_found",
        Code::FailedPrecondition => "failed_precondition",
        Code::ResourceExhausted => "resource_exhausted",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        _ => "internal",
    }
}
