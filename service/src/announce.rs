//! Tells scripts and tests where a service listens.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
};

use serde_json::json;

/// Prints one JSON line on stdout, for callers that started the service on port 0:
/// `{"address":"127.0.0.1:7300","event":"listening","service":"embed"}`.
///
/// Call it once, when the service answers. Logs go to stderr, so this is the only line there.
///
/// # Errors
/// When stdout cannot be written, for instance because its reader is gone.
pub fn listening(service: &str, address: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", line(service, address))?;
    out.flush()
}

fn line(service: &str, address: SocketAddr) -> serde_json::Value {
    json!({ "event": "listening", "service": service, "address": address.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_event_service_and_address() {
        let line = line("embed", ([127, 0, 0, 1], 7300).into());
        assert_eq!(line["event"], "listening");
        assert_eq!(line["service"], "embed");
        assert_eq!(line["address"], "127.0.0.1:7300");
    }
}
