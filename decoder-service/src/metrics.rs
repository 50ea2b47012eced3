//! What Prometheus sees, all under `scone_decoder_`.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use scone_embed_client::Monitor;

/// How a completion, or a refused request, ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// `stop`, `length`, or the error's short name.
    pub outcome: &'static str,
}

/// Whose tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KeyName {
    /// Name of an API key, as in its file.
    pub key: Arc<str>,
}

/// The metrics of the decoder-service. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Completions that ended and requests that were refused.
    pub requests: Family<Outcome, Counter>,
    /// Sequences that wait for a slot in the batch.
    pub queue_depth: Gauge,
    /// Sequences in the batch.
    pub running: Gauge,
    /// Duration of a step of the whole batch, look-up included.
    pub step_seconds: Histogram,
    /// Part of it that waits for the embed tier.
    pub lookup_seconds: Histogram,
    /// Part of it in the model.
    pub forward_seconds: Histogram,
    /// Part of it that chooses tokens.
    pub sampling_seconds: Histogram,
    /// From arrival of a request to its first token.
    pub first_token_seconds: Histogram,
    /// Tokens of prompts.
    pub prompt_tokens: Counter,
    /// Tokens generated.
    pub generated_tokens: Counter,
    /// Positions fed to the model.
    pub positions: Counter,
    /// Of these, with an f-gram row as input.
    pub matched_positions: Counter,
    /// Of these, with the token embedding because the embed tier did not answer.
    pub fallback_positions: Counter,
    /// Steps with a look-up that failed.
    pub lookup_failures: Counter,
    /// Positions taken from the prefix cache.
    pub cached_positions: Counter,
    /// Tokens of prompts and generated ones, by API key.
    pub key_tokens: Family<KeyName, Counter>,
    /// Sequences that gave their KV blocks to older ones and are computed again.
    pub preemptions: Counter,
    /// KV blocks in use.
    pub kv_blocks_used: Gauge,
    /// KV blocks in all.
    pub kv_blocks: Gauge,
    /// Where the figures of remote look-ups come from, once there are any.
    embed_tier: Arc<OnceLock<Monitor>>,
}

/// From 50 us in steps of two to 26 s.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(50e-6, 2.0, 20))
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            queue_depth: Gauge::default(),
            running: Gauge::default(),
            step_seconds: seconds(),
            lookup_seconds: seconds(),
            forward_seconds: seconds(),
            sampling_seconds: seconds(),
            first_token_seconds: seconds(),
            prompt_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            positions: Counter::default(),
            matched_positions: Counter::default(),
            fallback_positions: Counter::default(),
            lookup_failures: Counter::default(),
            cached_positions: Counter::default(),
            key_tokens: Family::default(),
            preemptions: Counter::default(),
            kv_blocks_used: Gauge::default(),
            kv_blocks: Gauge::default(),
            embed_tier: Arc::default(),
        }
    }
}

impl Metrics {
    /// A registry with all of them.
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("scone_decoder");
        let r = &mut registry;
        r.register(
            "requests",
            "Completions that ended and requests that were refused, by outcome",
            self.requests.clone(),
        );
        r.register(
            "queue_depth",
            "Sequences that wait for a slot in the batch",
            self.queue_depth.clone(),
        );
        r.register("running", "Sequences in the batch", self.running.clone());
        r.register_with_unit(
            "step",
            "Duration of a step of the whole batch, look-up included",
            Unit::Seconds,
            self.step_seconds.clone(),
        );
        r.register_with_unit(
            "lookup",
            "Part of a step that waits for the embed tier",
            Unit::Seconds,
            self.lookup_seconds.clone(),
        );
        r.register_with_unit(
            "forward",
            "Part of a step in the model",
            Unit::Seconds,
            self.forward_seconds.clone(),
        );
        r.register_with_unit(
            "sampling",
            "Part of a step that chooses tokens",
            Unit::Seconds,
            self.sampling_seconds.clone(),
        );
        r.register_with_unit(
            "first_token",
            "From arrival of a request to its first token",
            Unit::Seconds,
            self.first_token_seconds.clone(),
        );
        r.register(
            "kv_blocks_used",
            "Blocks of keys and values that sequences have",
            self.kv_blocks_used.clone(),
        );
        r.register(
            "kv_blocks",
            "Blocks of keys and values in all",
            self.kv_blocks.clone(),
        );
        self.register_counters(r);
        r.register_collector(Box::new(EmbedTierFigures(self.embed_tier.clone())));
        registry
    }

    fn register_counters(&self, r: &mut Registry) {
        let counters = [
            ("prompt_tokens", "Tokens of prompts", &self.prompt_tokens),
            (
                "generated_tokens",
                "Tokens generated",
                &self.generated_tokens,
            ),
            ("positions", "Positions fed to the model", &self.positions),
            (
                "matched_positions",
                "Positions whose input was an f-gram row",
                &self.matched_positions,
            ),
            (
                "fallback_positions",
                "Positions whose input was the token embedding because the embed tier did not answer",
                &self.fallback_positions,
            ),
            (
                "lookup_failures",
                "Steps with a look-up that failed",
                &self.lookup_failures,
            ),
            (
                "cached_positions",
                "Positions taken from the prefix cache instead of being computed",
                &self.cached_positions,
            ),
            (
                "preemptions",
                "Sequences that gave their KV blocks to older ones and are computed again",
                &self.preemptions,
            ),
        ];
        for (name, help, counter) in counters {
            r.register(name, help, counter.clone());
        }
        r.register(
            "key_tokens",
            "Tokens of prompts and generated ones, by name of the API key",
            self.key_tokens.clone(),
        );
    }

    /// Shows the figures of remote look-ups from now on.
    pub fn watch_embed_tier(&self, monitor: Monitor) {
        // Set once, at start; a second embed tier does not exist.
        let _ = self.embed_tier.set(monitor);
    }

    /// Counts the tokens of one API key.
    pub fn key_tokens(&self, name: &Arc<str>) -> Counter {
        let key = name.clone();
        self.key_tokens.get_or_create(&KeyName { key }).clone()
    }

    /// Counts an ended completion or a refused request.
    pub fn ended(&self, outcome: &'static str) {
        self.requests.get_or_create(&Outcome { outcome }).inc();
    }
}

/// Figures of remote look-ups, read when Prometheus asks.
#[derive(Debug)]
struct EmbedTierFigures(Arc<OnceLock<Monitor>>);

impl Collector for EmbedTierFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(monitor) = self.0.get() else {
            return Ok(());
        };
        let stats = monitor.stats();
        for (name, help, value) in [
            (
                "lookup_retries",
                "Look-up messages sent again to an embed-service after one failed",
                stats.retries,
            ),
            (
                "lookup_hedges_sent",
                "Look-up messages sent to a second embed-service because the first was late",
                stats.hedges_sent,
            ),
            (
                "lookup_hedges_won",
                "Of these, answered by the second embed-service first",
                stats.hedges_won,
            ),
        ] {
            let metric = ConstCounter::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let name = "embed_replicas";
        let help = "Embed-services connected that serve the current table version, by shard";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (shard, replicas) in monitor.replicas().into_iter().enumerate() {
            let label = [("shard", shard.to_string())];
            let metric = ConstGauge::new(replicas as i64);
            metric.encode(family.encode_family(&label)?)?;
        }
        Ok(())
    }
}
