//! The flags for connections, the same for both services.

use std::{marker::PhantomData, time::Duration};

use clap::Args;

use super::{limits::ConnectionLimits, names::ConnectionNames, tls_args::TlsArgs};
use crate::args::{parse_bytes, parse_duration};

/// The connection flags, to be flattened into a service's own arguments.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connections")]
pub struct ConnectionArgs<N: ConnectionNames> {
    /// Most connections open at one time; one more is closed at once.
    #[arg(
        long,
        env = N::MAX_CONNECTIONS,
        value_name = "N",
        default_value_t = 1024
    )]
    pub max_connections: u32,

    /// Age at which a connection is ended, with a unit, 10 % more or less, so that clients come
    /// back to replicas that were added; 0s for never. Calls that it got are answered.
    #[arg(
        long,
        env = N::MAX_CONNECTION_AGE,
        value_name = "DURATION",
        default_value = "10m",
        value_parser = parse_duration
    )]
    pub max_connection_age: Duration,

    /// How long the calls of such a connection may take to end before it is cut, with a unit.
    #[arg(
        long,
        env = N::MAX_CONNECTION_AGE_GRACE,
        value_name = "DURATION",
        default_value = N::DEFAULT_GRACE,
        value_parser = parse_duration
    )]
    pub max_connection_age_grace: Duration,

    /// How long a connection may take to begin to speak HTTP, with a unit; then it is cut. Also how long a
    /// handshake of TLS may take before that, the head of an HTTP/1 request, and an open connection
    /// be without one.
    #[arg(
        long,
        env = N::CONNECTION_SILENCE,
        value_name = "DURATION",
        default_value = "60s",
        value_parser = parse_duration
    )]
    pub connection_silence: Duration,

    /// Memory for gRPC messages that have begun to arrive and are not whole, of all clients together,
    /// with a unit (MiB); a message that has no room ends with RESOURCE_EXHAUSTED.
    #[arg(
        long,
        env = N::MAX_UNFINISHED_BYTES,
        value_name = "BYTES",
        default_value = "64MiB",
        value_parser = parse_bytes
    )]
    pub max_unfinished_bytes: u64,

    /// Encryption.
    #[command(flatten)]
    pub tls: TlsArgs<N>,

    #[arg(skip)]
    names: PhantomData<N>,
}

impl<N: ConnectionNames> ConnectionArgs<N> {
    /// Adds what is wrong, each naming its flag.
    pub fn check(&self, problems: &mut Vec<String>) {
        if self.max_connections == 0 {
            problems.push("--max-connections is 0, at least 1 is needed".to_owned());
        }
        if self.connection_silence.is_zero() {
            problems.push("--connection-silence is 0, at least 1ms is needed".to_owned());
        }
        if self.max_unfinished_bytes == 0 {
            problems.push("--max-unfinished-bytes is 0, at least 1 is needed".to_owned());
        }
    }

    /// The limits asked for.
    #[must_use]
    pub fn limits(&self) -> ConnectionLimits {
        ConnectionLimits {
            max_connections: self.max_connections as usize,
            max_age: Some(self.max_connection_age).filter(|age| !age.is_zero()),
            age_grace: self.max_connection_age_grace,
            silence: self.connection_silence,
            unfinished_bytes: self.max_unfinished_bytes.try_into().unwrap_or(usize::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use clap::{CommandFactory as _, Parser};

    use super::*;

    #[derive(Clone, Debug)]
    struct Names;

    impl ConnectionNames for Names {
        const MAX_CONNECTIONS: &'static str = "A_MAX_CONNECTIONS";
        const MAX_CONNECTION_AGE: &'static str = "A_MAX_CONNECTION_AGE";
        const MAX_CONNECTION_AGE_GRACE: &'static str = "A_MAX_CONNECTION_AGE_GRACE";
        const CONNECTION_SILENCE: &'static str = "A_CONNECTION_SILENCE";
        const MAX_UNFINISHED_BYTES: &'static str = "A_MAX_UNFINISHED_BYTES";
        const TLS_CERT: &'static str = "A_TLS_CERT";
        const TLS_KEY: &'static str = "A_TLS_KEY";
        const TLS_CLIENT_CA: &'static str = "A_TLS_CLIENT_CA";
        const DEFAULT_GRACE: &'static str = "7s";
    }

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        connections: ConnectionArgs<Names>,
    }

    fn parse(flags: &[&str]) -> ConnectionArgs<Names> {
        let flags = [&["a"], flags].concat();
        Cli::try_parse_from(flags).unwrap().connections
    }

    #[test]
    fn each_service_has_its_own_variables() {
        let command = Cli::command();
        let variables = command.get_arguments().filter_map(|arg| arg.get_env());
        let variables: Vec<_> = variables.map(|name| name.to_str().unwrap()).collect();
        assert_eq!(
            variables,
            [
                Names::MAX_CONNECTIONS,
                Names::MAX_CONNECTION_AGE,
                Names::MAX_CONNECTION_AGE_GRACE,
                Names::CONNECTION_SILENCE,
                Names::MAX_UNFINISHED_BYTES,
                Names::TLS_CERT,
                Names::TLS_KEY,
                Names::TLS_CLIENT_CA
            ]
        );
    }

    #[test]
    fn an_age_of_zero_is_never() {
        let limits = parse(&[]).limits();
        assert_eq!(limits.max_age, Some(Duration::from_secs(600)));
        assert_eq!(limits.age_grace, Duration::from_secs(7));
        let limits = parse(&["--max-connection-age=0s"]).limits();
        assert_eq!(limits.max_age, None);
    }

    #[test]
    fn a_certificate_needs_its_key_and_files_that_can_be_read() {
        for alone in ["--tls-cert=/a", "--tls-key=/a", "--tls-client-ca=/a"] {
            assert!(Cli::try_parse_from(["a", alone]).is_err(), "{alone}");
        }
        let mut problems = Vec::new();
        assert!(parse(&[]).tls.open(&mut problems).is_none() && problems.is_empty());
        let absent = parse(&["--tls-cert=/no/cert", "--tls-key=/no/key"]);
        assert!(absent.tls.open(&mut problems).is_none());
        assert!(problems[0].contains("/no/cert"), "{problems:?}");
    }

    #[test]
    fn no_connections_at_all_are_refused() {
        let mut problems = Vec::new();
        parse(&["--max-connections=1"]).check(&mut problems);
        assert!(problems.is_empty());
        parse(&["--max-connections=0"]).check(&mut problems);
        assert!(problems[0].contains("--max-connections"), "{problems:?}");
    }
}
