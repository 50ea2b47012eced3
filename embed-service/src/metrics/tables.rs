//! Facts and hot set of the tables served.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::tables::{Named, Tables, Versions};

/// Reads the tables served when Prometheus asks; nothing before one is open. The hot set is that
/// of the current version of each, so its counters start again at a switch.
#[derive(Debug)]
pub(super) struct TableMetrics {
    pub(super) tables: Arc<Tables>,
}

/// Name, help, whether it only grows, and the value of one table.
type TableMetric = (&'static str, &'static str, bool, fn(&Versions) -> u64);

const METRICS: [TableMetric; 8] = [
    (
        "hot_set_hits",
        "Rows found in the hot set or, of a mapped table, in the page cache",
        true,
        |of| of.current.table.stats().hits,
    ),
    ("hot_set_misses", "Rows that were not", true, |of| {
        of.current.table.stats().misses
    }),
    (
        "hot_set_coalesced",
        "Misses that waited for another look-up's read of the same row",
        true,
        |of| of.current.table.stats().coalesced,
    ),
    (
        "hot_set_evictions",
        "Rows dropped to make room",
        true,
        |of| of.current.table.stats().evictions,
    ),
    ("hot_set_rows", "Rows held in the hot set", false, |of| {
        of.current.table.stats().rows
    }),
    (
        "hot_set_bytes",
        "Memory of the hot set, in bytes",
        false,
        |of| of.current.table.stats().bytes,
    ),
    ("table_rows", "Rows of the current table", false, |of| {
        of.current.info.rows
    }),
    (
        "table_age_seconds",
        "How long the current table has been answering",
        false,
        |of| of.since.elapsed().as_secs(),
    ),
];

impl Collector for TableMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Ok(named) = self.tables.all() else {
            return Ok(());
        };
        if named.is_empty() {
            return Ok(());
        }
        for (name, help, grows, value) in METRICS {
            let kind = if grows {
                MetricType::Counter
            } else {
                MetricType::Gauge
            };
            let mut samples = encoder.encode_descriptor(name, help, None, kind)?;
            for (table, versions) in &named {
                let labels = [("table", table.to_string())];
                let sample = samples.encode_family(&labels)?;
                let value = value(versions);
                if grows {
                    ConstCounter::new(value).encode(sample)?;
                } else {
                    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(sample)?;
                }
            }
        }
        encode_versions(&named, &mut encoder)
    }
}

/// One sample for each version that answers, two of a table at most.
fn encode_versions(named: &Named, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "Table versions that answer: the current one, and the one retained";
    let mut samples = encoder.encode_descriptor("table", help, None, MetricType::Info)?;
    for (name, versions) in named {
        for (table, state) in versions.iter().zip(["current", "retained"]) {
            let info = &table.info;
            let name = name.to_string();
            let labels = [
                ("table", name.as_str()),
                ("table_id", info.table_id.as_str()),
                ("store", info.store.as_str()),
                ("state", if versions.retiring { "retained" } else { state }),
            ];
            samples.encode_info(&labels)?;
        }
    }
    Ok(())
}
