//! When certificates end, as Prometheus sees it.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
    registry::{Registry, Unit},
};

/// Registers when a certificate ends, in seconds since 1970, under this name before
/// `_expiry_timestamp_seconds`. Asked for each scrape, as files change; absent while it is `None`.
pub fn register_expiry(
    registry: &mut Registry,
    name: &str,
    ends: impl Fn() -> Option<i64> + Send + Sync + 'static,
) {
    registry.register_collector(Box::new(Expiry {
        name: format!("{name}_expiry_timestamp"),
        ends: Box::new(ends),
    }));
}

struct Expiry {
    name: String,
    ends: Box<dyn Fn() -> Option<i64> + Send + Sync>,
}

impl fmt::Debug for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expiry").field(&self.name).finish()
    }
}

impl Collector for Expiry {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(ends) = (self.ends)() else {
            return Ok(());
        };
        let help = "When the certificate ends, in seconds since 1970";
        let (unit, kind) = (Some(&Unit::Seconds), MetricType::Gauge);
        let metric = ConstGauge::new(ends);
        metric.encode(encoder.encode_descriptor(&self.name, help, unit, kind)?)
    }
}
