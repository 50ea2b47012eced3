//! What Prometheus sees, all under `scone_decoder_`.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// How a completion, or a refused request, ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// `stop`, `length`, or the error's short name.
    pub outcome: &'static str,
}

/// The metrics of the decoder-service. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Completions that ended and requests that were refused.
    pub requests: Family<Outcome, Counter>,
    /// Sequences that wait for a place in the batch.
    pub queue_depth: Gauge,
    /// Sequences in the batch.
    pub running: Gauge,
    /// Duration of a step of the whole batch, look-up included.
    pub step_seconds: Histogram,
    /// Part of it that waits for the embed tier.
    pub lookup_seconds: Histogram,
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
            first_token_seconds: seconds(),
            prompt_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            positions: Counter::default(),
            matched_positions: Counter::default(),
            fallback_positions: Counter::default(),
            lookup_failures: Counter::default(),
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
            "Sequences that wait for a place in the batch",
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
            "first_token",
            "From arrival of a request to its first token",
            Unit::Seconds,
            self.first_token_seconds.clone(),
        );
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
        ];
        for (name, help, counter) in counters {
            r.register(name, help, counter.clone());
        }
        registry
    }

    /// Counts an ended completion or a refused request.
    pub fn ended(&self, outcome: &'static str) {
        self.requests.get_or_create(&Outcome { outcome }).inc();
    }
}
