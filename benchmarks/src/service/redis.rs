//! Redis as a row server: rows are values, a batch is one MGET. Just enough of its protocol.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use integration_tests::eventually::{PATIENCE, eventually_within};
use integration_tests::process::Process;

use super::connection::Connection;
use crate::batches::{Batch, Served};
use crate::rows;

/// Rows written before their replies are read.
const PIPELINED_ROWS: usize = 256;

/// A redis-server of our own, in memory alone; ends with this value.
#[derive(Debug)]
pub struct Redis {
    port: u16,
    _process: Process,
}

impl Redis {
    /// Starts it on a free loopback port; `None` when it is not installed.
    ///
    /// # Errors
    /// When no port is free.
    ///
    /// # Panics
    /// When it does not answer in time.
    pub fn start() -> Result<Option<Self>> {
        let mut probe = Command::new("redis-server");
        let probe = probe.arg("--version").stdout(Stdio::null()).status();
        if !probe.is_ok_and(|status| status.success()) {
            return Ok(None);
        }
        // Redis cannot take port 0 and say which it got, so a free one is looked for first.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = free.local_addr()?.port();
        drop(free);
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--save", "", "--appendonly", "no"]);
        let process = Process::spawn("redis-server", command);
        let redis = Self {
            port,
            _process: process,
        };
        eventually_within(PATIENCE, "an open port of redis-server", || {
            redis.connect(0).ok()
        });
        Ok(Some(redis))
    }

    /// Stores all rows of a set.
    ///
    /// # Errors
    /// When the connection breaks, or Redis refuses one.
    pub fn load(&self, served: &Served<'_>, row_bytes: usize) -> Result<()> {
        let mut connection = self.connect(0)?;
        let (mut commands, mut row) = (Vec::new(), Vec::new());
        let all: Vec<u32> = (0..served.len() as u32).collect();
        for some in all.chunks(PIPELINED_ROWS) {
            commands.clear();
            let batch = served.batch(some.iter().copied());
            for (key, ids) in batch.keys().zip(batch.fgrams()) {
                row.clear();
                rows::encoded(ids, row_bytes, &mut row);
                command(&[b"SET", key, &row], &mut commands);
            }
            connection.stream.write_all(&commands)?;
            let expected = b"+OK\r\n".repeat(some.len());
            let mut replies = vec![0; expected.len()];
            connection.stream.read_exact(&mut replies)?;
            ensure!(replies == expected, "redis-server refused a row");
        }
        Ok(())
    }

    /// Connects; answers will have `answer_bytes` bytes.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(&self, answer_bytes: usize) -> Result<RedisConnection> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        let stream = stream.context("connect to redis-server")?;
        stream.set_nodelay(true)?;
        Ok(RedisConnection {
            stream,
            answer: vec![0; answer_bytes],
        })
    }
}

/// The MGET of a batch.
pub fn question(batch: &Batch) -> Bytes {
    let mut words: Vec<&[u8]> = vec![b"MGET"];
    words.extend(batch.keys());
    let mut out = Vec::new();
    command(&words, &mut out);
    out.into()
}

/// The answer to the MGET of some rows.
pub fn answer<'a>(rows: impl ExactSizeIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    array(rows, &mut out);
    out
}

fn command(words: &[&[u8]], out: &mut Vec<u8>) {
    array(words.iter().copied(), out);
}

/// An array of bulk strings, which is what commands and answers to MGET are.
fn array<'a>(items: impl ExactSizeIterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
    out.extend(format!("*{}\r\n", items.len()).bytes());
    for item in items {
        out.extend(format!("${}\r\n", item.len()).bytes());
        out.extend_from_slice(item);
        out.extend(b"\r\n");
    }
}

/// A connection that knows the size of its answers, so that it need not look into them.
#[derive(Debug)]
pub struct RedisConnection {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Connection for RedisConnection {
    fn ask(&mut self, question: &Bytes) -> Result<()> {
        self.stream.write_all(question)?;
        Ok(self.stream.read_exact(&mut self.answer)?)
    }

    fn answer(&self) -> &[u8] {
        &self.answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_redis_reads_and_answers() {
        let mut out = Vec::new();
        command(&[b"MGET", b"a\r\n"], &mut out);
        assert_eq!(out, b"*2\r\n$4\r\nMGET\r\n$3\r\na\r\n\r\n");
        let rows: [&[u8]; 2] = [b"xy", b"z"];
        assert_eq!(answer(rows.into_iter()), b"*2\r\n$2\r\nxy\r\n$1\r\nz\r\n");
    }
}
