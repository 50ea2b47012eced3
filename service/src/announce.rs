//! Tells scripts and tests where a service listens.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
};

use serde_json::json;
use tracing::{info, warn};

/// The real addresses of a service that answers now; port 0 has become the port taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Listening {
    /// Short name: "embed" or "decoder".
    pub service: &'static str,
    /// The gRPC port.
    pub address: SocketAddr,
    /// The HTTP port, if the service has one.
    pub http: Option<SocketAddr>,
    /// The metrics port, if one was asked for.
    pub metrics: Option<SocketAddr>,
}

impl Listening {
    /// Logs the addresses, and prints them as one JSON line on stdout for callers that started
    /// the service on port 0:
    /// `{"address":"127.0.0.1:7300","event":"listening","http":null,"metrics":null,"service":"embed"}`.
    ///
    /// Call it once, when the service answers. Logs go to stderr, so this is the only line on
    /// stdout. A reader that has left is no reason to stop serving, so that is only logged.
    pub fn announce(&self) {
        let http = self.http.map(tracing::field::display);
        let metrics = self.metrics.map(tracing::field::display);
        info!(service = self.service, address = %self.address, http, metrics, "listening");
        let mut out = io::stdout().lock();
        if let Err(error) = writeln!(out, "{}", self.to_json()).and_then(|()| out.flush()) {
            warn!(%error, "cannot write the address to stdout");
        }
    }

    fn to_json(self) -> serde_json::Value {
        json!({
            "event": "listening",
            "service": self.service,
            "address": self.address.to_string(),
            "http": self.http.map(|address| address.to_string()),
            "metrics": self.metrics.map(|address| address.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_event_service_and_address() {
        let listening = Listening {
            service: "embed",
            address: ([127, 0, 0, 1], 7300).into(),
            http: None,
            metrics: None,
        };
        let line = listening.to_json();
        assert_eq!(line["event"], "listening");
        assert_eq!(line["service"], "embed");
        assert_eq!(line["address"], "127.0.0.1:7300");
        assert_eq!(line["metrics"], serde_json::Value::Null);
    }
}
