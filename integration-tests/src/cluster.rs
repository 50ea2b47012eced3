//! The two services as processes on free loopback ports.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    binaries::binaries,
    eventually::{PATIENCE, eventually_within},
    fixtures::fixtures,
    folders::copy_of,
    process::{Finished, Process, run},
};

/// Any free loopback port.
pub const ANY_PORT: &str = "127.0.0.1:0";

/// A running service.
#[derive(Debug)]
pub struct Service {
    /// Its process; killed when the service is dropped.
    pub process: Process,
    /// Where it listens, as `127.0.0.1:port`.
    pub address: String,
    /// Where a decoder-service answers HTTP, as `127.0.0.1:port`.
    pub http: Option<String>,
    /// Where its metrics are, when it was started with `--metrics-listen`.
    pub metrics: Option<String>,
    /// The sled table it holds, if any: only one process can have it open.
    pub table: Option<PathBuf>,
}

impl Service {
    /// Starts an embed-service on a copy of `table`.
    ///
    /// # Panics
    /// When it does not listen in time.
    pub fn embed(table: &Path, flags: &[&str]) -> Self {
        Self::embed_at(ANY_PORT, copy_of(table), flags)
    }

    /// Starts an embed-service at an address, on a table that nobody else has open.
    ///
    /// # Panics
    /// When it does not listen in time.
    pub fn embed_at(address: &str, table: PathBuf, flags: &[&str]) -> Self {
        let mut service = Self::start("embed-service", embed_command(&table, address, flags));
        service.table = Some(table);
        service
    }

    /// Starts a decoder-service with a copy of `table` in its own process.
    ///
    /// # Panics
    /// When it does not listen in time.
    pub fn decoder_embedded(model: &Path, table: &Path, flags: &[&str]) -> Self {
        let table = copy_of(table);
        let mut command = decoder_command(model, ANY_PORT, flags);
        command.arg("--table").arg(&table);
        let mut service = Self::start("decoder-service", command);
        service.table = Some(table);
        service
    }

    /// Starts a decoder-service that asks these embed-services, as `--embed` takes them.
    ///
    /// # Panics
    /// When it does not listen in time.
    pub fn decoder_remote(model: &Path, embed: &str, flags: &[&str]) -> Self {
        let mut command = decoder_command(model, ANY_PORT, flags);
        command.args(["--embed", embed]);
        if !flags.contains(&"--lookup-timeout") {
            // Long: a busy machine must not look like a lost embed-service.
            command.args(["--lookup-timeout", "10s"]);
        }
        Self::start("decoder-service", command)
    }

    /// The fixture's model with the fixture's table, in one process.
    ///
    /// # Panics
    /// When it does not listen in time.
    pub fn decoder(flags: &[&str]) -> Self {
        Self::decoder_embedded(&fixtures().model, &fixtures().table, flags)
    }

    fn start(name: &str, command: Command) -> Self {
        Self::try_start(name, command)
            .unwrap_or_else(|ended| panic!("{name} ended at start: {}", ended.status))
    }

    /// Starts a service that may refuse to start.
    ///
    /// # Errors
    /// How it ended, when it did so before it listened.
    ///
    /// # Panics
    /// When it neither listens nor ends in time.
    pub fn try_start(name: &str, command: Command) -> Result<Self, Finished> {
        let mut process = Process::spawn(name, command);
        let what = format!("address of {name}");
        let event = eventually_within(PATIENCE, &what, || {
            // Asked first: what an ended process has printed is all there.
            let ended = process.exit_status();
            match (listening_event(&process.stdout()), ended) {
                (Some(event), _) => Some(Ok(event)),
                (None, Some(status)) => Some(Err(status)),
                (None, None) => None,
            }
        });
        let event = match event {
            Ok(event) => event,
            Err(status) => return Err(process.finished(status)),
        };
        let text = |key: &str| event[key].as_str().map(str::to_owned);
        Ok(Self {
            process,
            address: text("address").expect("an address in the event"),
            http: text("http"),
            metrics: text("metrics"),
            table: None,
        })
    }

    /// The value of one metric, or `None` when it is not reported. Labels are part of the name.
    ///
    /// # Panics
    /// When the service was started without `--metrics-listen`.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = http_get(
            self.metrics.as_deref().expect("--metrics-listen"),
            "/metrics",
        )
        .await;
        let line = text
            .lines()
            .find(|line| line.split_whitespace().next() == Some(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }
}

/// `embed-service serve`.
pub fn embed_command(table: &Path, listen: &str, flags: &[&str]) -> Command {
    let mut command = Command::new(&binaries().embed_service);
    command.arg("serve").arg("--table").arg(table);
    command.args(["--listen", listen]).args(flags);
    command
}

/// `decoder-service serve`, still without `--table` or `--embed`.
pub fn decoder_command(model: &Path, listen: &str, flags: &[&str]) -> Command {
    let mut command = Command::new(&binaries().decoder_service);
    command.arg("serve").arg("--model").arg(model);
    // Its default is one port of the machine.
    command.args(["--http-listen", ANY_PORT]);
    command.args(["--listen", listen]).args(flags);
    command
}

/// Runs a service that must refuse to start, and returns its message.
///
/// # Panics
/// When it starts, is killed or panics.
pub fn refusal(name: &str, command: Command) -> String {
    run(name, command).failure()
}

/// The line that a service prints when it answers.
fn listening_event(stdout: &str) -> Option<serde_json::Value> {
    stdout
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .find(|line: &serde_json::Value| line["event"] == "listening")
}

/// An HTTP/1.1 answer, head and body.
///
/// # Panics
/// When it is not 200.
pub async fn http_get(address: &str, path: &str) -> String {
    http(address, &format!("GET {path}"), "").await
}

/// The body of an HTTP/1.1 answer to a body of JSON.
///
/// # Panics
/// When it is not 200, or no JSON.
pub async fn http_post(address: &str, path: &str, body: &serde_json::Value) -> serde_json::Value {
    let answer = http(address, &format!("POST {path}"), &body.to_string()).await;
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    serde_json::from_str(body).expect("JSON")
}

async fn http(address: &str, what: &str, body: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("connect to the HTTP endpoint");
    let request = format!(
        "{what} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream
        .write_all(request.as_bytes())
        .await
        .expect("send a request");
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .await
        .expect("read an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}
