//! What Prometheus sees, under the prefix `scone_embed_`.

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use scone_fgram::MAX_N;
use tonic::Code;

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
    /// Positions being looked up now.
    pub inflight_positions: Gauge,
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
            inflight_positions: Gauge::default(),
        };
        metrics.register_requests(registry);
        registry.register(
            "matched_positions",
            "Positions with a match, by length of the f-gram",
            matched,
        );
        registry.register_collector(Box::new(HotSet { tables }));
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
            "inflight_positions",
            "Positions being looked up now",
            self.inflight_positions.clone(),
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
}

const LENGTHS: [&str; MAX_N + 1] = ["0", "1", "2", "3", "4", "5", "6", "7", "8"];

/// Only the codes that [`crate::error::Error::code`] gives, so the label stays bounded.
fn outcome_label(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::InvalidArgument => "invalid_argument",
        Code::FailedPrecondition => "failed_precondition",
        Code::ResourceExhausted => "resource_exhausted",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        _ => "internal",
    }
}

/// Reads the hot set of the table served when Prometheus asks; nothing before one is open.
#[derive(Debug)]
struct HotSet {
    tables: Arc<Tables>,
}

impl Collector for HotSet {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Ok(served) = self.tables.current() else {
            return Ok(());
        };
        let stats = served.table.stats();
        for (name, help, value) in [
            ("hot_set_hits", "Rows found in the hot set", stats.hits),
            ("hot_set_misses", "Rows read from the store", stats.misses),
            (
                "hot_set_evictions",
                "Rows dropped to make room",
                stats.evictions,
            ),
        ] {
            let metric = ConstCounter::new(value);
            let kind = prometheus_client::metrics::MetricType::Counter;
            metric.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        for (name, help, value) in [
            ("hot_set_rows", "Rows held in the hot set", stats.rows),
            (
                "hot_set_bytes",
                "Memory of the hot set, in bytes",
                stats.bytes,
            ),
            ("table_rows", "Rows of the table served", served.info.rows),
        ] {
            let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let kind = prometheus_client::metrics::MetricType::Gauge;
            metric.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        Ok(())
    }
}
