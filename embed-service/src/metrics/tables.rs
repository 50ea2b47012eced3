//! Facts and hot set of the tables served.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::tables::{Tables, Versions};

/// Reads the tables served when Prometheus asks; nothing before one is open. The hot set is that
/// of the current table, so its counters start again at a switch.
#[derive(Debug)]
pub(super) struct TableMetrics {
    pub(super) tables: Arc<Tables>,
}

impl Collector for TableMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Ok(versions) = self.tables.versions() else {
            return Ok(());
        };
        let stats = versions.current.table.stats();
        for (name, help, value) in [
            (
                "hot_set_hits",
                "Rows found in the hot set or, of a mapped table, in the page cache",
                stats.hits,
            ),
            ("hot_set_misses", "Rows that were not", stats.misses),
            (
                "hot_set_coalesced",
                "Misses that waited for another look-up's read of the same row",
                stats.coalesced,
            ),
            (
                "hot_set_evictions",
                "Rows dropped to make room",
                stats.evictions,
            ),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        for (name, help, value) in [
            ("hot_set_rows", "Rows held in the hot set", stats.rows),
            (
                "hot_set_bytes",
                "Memory of the hot set, in bytes",
                stats.bytes,
            ),
            (
                "table_rows",
                "Rows of the current table",
                versions.current.info.rows,
            ),
            (
                "table_age_seconds",
                "How long the current table has been answering",
                versions.since.elapsed().as_secs(),
            ),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        encode_versions(&versions, &mut encoder)
    }
}

/// One sample for each version that answers, two at most.
fn encode_versions(versions: &Versions, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "Table versions that answer: the current one, and the one retained";
    let mut samples = encoder.encode_descriptor("table", help, None, MetricType::Info)?;
    for (table, state) in versions.iter().zip(["current", "retained"]) {
        let info = &table.info;
        let labels = [
            ("table_id", info.table_id.as_str()),
            ("store", info.store.as_str()),
            ("state", state),
        ];
        samples.encode_info(&labels)?;
    }
    Ok(())
}
