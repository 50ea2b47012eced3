//! The flags of traces.

use clap::Args;

/// The flags of traces that both services have.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Traces")]
pub struct OtlpArgs {
    /// Send traces to this collector, over OTLP (gRPC without TLS), such as http://127.0.0.1:4317; none
    /// when absent. Run one on the same node: spans have ids and times in them, no text.
    #[arg(long, env = "SCONE_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
}

impl OtlpArgs {
    /// The address, if there is one; what is wrong with it goes to `problems`.
    pub fn check(&self, problems: &mut Vec<String>) -> Option<String> {
        let endpoint = self.otlp_endpoint.as_ref()?;
        let authority = endpoint.strip_prefix("http://").unwrap_or_default();
        let host = authority.trim_end_matches('/');
        if host.is_empty()
            || host.contains('/')
            || tonic::transport::Endpoint::from_shared(endpoint.clone()).is_err()
        {
            problems.push(format!(
                "--otlp-endpoint {endpoint}: expected http:// and an address, such as http://127.0.0.1:4317"
            ));
            return None;
        }
        Some(endpoint.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_can_be_reached_so_are_taken() {
        let check = |text: &str| {
            let mut problems = Vec::new();
            let args = OtlpArgs {
                otlp_endpoint: Some(text.to_owned()),
            };
            (args.check(&mut problems), problems)
        };
        for sound in ["http://127.0.0.1:4317", "http://collector.monitoring:4317/"] {
            assert_eq!(check(sound), (Some(sound.to_owned()), Vec::new()));
        }
        for wrong in [
            "",
            "http://",
            "https://a:4317",
            "127.0.0.1:4317",
            "http://a/v1/traces",
            "http://a b",
        ] {
            let (endpoint, problems) = check(wrong);
            assert!(
                endpoint.is_none() && problems[0].starts_with("--otlp-endpoint"),
                "{wrong}"
            );
        }
    }
}
