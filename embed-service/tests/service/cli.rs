//! The binary: its output, its exit codes, SIGTERM.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::FIRST;

fn embed_service(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embed-service"));
    command.args(args);
    command
}

fn table() -> (TempDir, String) {
    let dir = TempDir::new().unwrap();
    FIRST.build(dir.path());
    let path = dir.path().to_str().unwrap().to_owned();
    (dir, path)
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn serve_announces_its_port_and_ends_on_sigterm() {
    let (_dir, path) = table();
    let mut child = embed_service(&["serve", "--table", &path, "--listen", "127.0.0.1:0"])
        .args(["--metrics-listen", "127.0.0.1:0", "--log-format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&line["event"], &line["service"]),
        (&"listening".into(), &"embed".into())
    );
    for port in ["address", "metrics"] {
        let address = line[port].as_str().unwrap();
        std::net::TcpStream::connect(address).unwrap();
    }

    // A second server cannot take the port, nor inspect be in the way of the first.
    let taken = line["address"].as_str().unwrap();
    let inspected = embed_service(&["inspect", "--json", "--table", &path]).output();
    assert_eq!(json(&inspected.unwrap())["rows"], 400);
    let output = embed_service(&["serve", "--table", &path, "--listen", taken]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("another process has the port"),
        "{}",
        stderr(&output)
    );

    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for line in stderr(&output).lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
}

#[test]
fn serve_refuses_a_bad_configuration_before_it_binds() {
    let output = embed_service(&["serve", "--table", "/no/such/dir", "--max-spans", "0"]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.contains("--table /no/such/dir") && text.contains("--max-spans"),
        "{text}"
    );
}

#[test]
fn inspect_states_facts() {
    let (_dir, path) = table();
    let output = embed_service(&["inspect", "--json", "--head", "3", "--table", &path]).output();
    let facts = json(&output.unwrap());
    assert_eq!(
        (&facts["rows"], &facts["dtype"]),
        (&400.into(), &"f16".into())
    );
    assert_eq!(facts["all_rows_bytes"], 400 * 12);
    assert_eq!(facts["head"].as_array().unwrap().len(), 3);
    let by_length = facts["rows_by_length"].as_object().unwrap();
    let sum: u64 = by_length.values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(sum, 400);

    let text = embed_service(&["inspect", "--table", &path])
        .output()
        .unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("rows             400"), "{text}");
}

#[test]
fn verify_tells_sound_from_damaged() {
    let (dir, path) = table();
    let output = embed_service(&["verify", "--json", "--table", &path]).output();
    let report = json(&output.unwrap());
    assert_eq!(
        (&report["event"], &report["rows"]),
        (&"verified".into(), &400.into())
    );

    let keys = dir.path().join("keys.bin");
    let mut bytes = std::fs::read(&keys).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&keys, bytes).unwrap();
    let output = embed_service(&["verify", "--table", &path])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("keys.bin"), "{}", stderr(&output));
}

#[test]
fn serve_names_a_port_in_use_before_it_opens_the_table() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = TempDir::new().unwrap();
    let path = dir.path().to_str().unwrap();
    let output = embed_service(&["serve", "--table", path, "--listen", &address]).output();
    let text = stderr(&output.unwrap());
    assert!(
        text.contains(&address) && text.contains("has the port"),
        "{text}"
    );
}
