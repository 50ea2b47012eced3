//! The binary: its output, its exit codes, SIGTERM.

use std::{
    io::{BufRead as _, BufReader, Lines, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::symlink,
    process::{Child, ChildStderr, Command, Output, Stdio},
};

use scone_fgram::{StoreKind, table::BuildOptions};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{FIRST, Version, fgram_set};

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

fn http_get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A running `serve`, killed when the test ends.
struct Serving {
    child: Child,
    /// What it printed on stdout when it was ready.
    event: Value,
    log: Lines<BufReader<ChildStderr>>,
}

impl Serving {
    fn start(table: &str) -> Self {
        Self::start_with(table, &[])
    }

    fn start_with(table: &str, flags: &[&str]) -> Self {
        let mut child = embed_service(&["serve", "--table", table, "--listen", "127.0.0.1:0"])
            .args(flags)
            .args(["--metrics-listen", "127.0.0.1:0", "--log-format", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let event = serde_json::from_str(&line).unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, event, log }
    }

    fn address(&self) -> &str {
        self.event["address"].as_str().unwrap()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let kill = Command::new("kill").args([name, &pid]).status();
        assert!(kill.unwrap().success());
    }

    /// Reads the log until a line has this message; the test runner's patience is the limit.
    fn wait_for_log(&mut self, message: &str) -> Value {
        for line in &mut self.log {
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if line["message"] == message {
                return line;
            }
        }
        panic!("the log ended without {message:?}");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn serve_announces_its_port_and_ends_on_sigterm() {
    let (_dir, path) = table();
    let mut serving = Serving::start(&path);
    assert_eq!(
        (&serving.event["event"], &serving.event["service"]),
        (&"listening".into(), &"embed".into())
    );
    for port in ["address", "metrics"] {
        let address = serving.event[port].as_str().unwrap();
        std::net::TcpStream::connect(address).unwrap();
    }

    let config = http_get(serving.event["metrics"].as_str().unwrap(), "/debug/config");
    let config: Value = serde_json::from_str(config.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(config["command"], "serve");
    assert_eq!(config["flags"]["--table"]["value"], path);
    assert_eq!(config["flags"]["--retain-table"]["from"], "default");

    // A second server cannot take the port, nor inspect be in the way of the first.
    let inspected = embed_service(&["inspect", "--json", "--table", &path]).output();
    assert_eq!(json(&inspected.unwrap())["rows"], 400);
    let taken = ["serve", "--table", &path, "--listen", serving.address()];
    let output = embed_service(&taken).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("another process has the port"),
        "{}",
        stderr(&output)
    );

    serving.signal("-TERM");
    for line in &mut serving.log {
        let line = line.unwrap();
        assert!(serde_json::from_str::<Value>(&line).is_ok(), "{line}");
    }
    assert_eq!(serving.child.wait().unwrap().code(), Some(0));
}

#[test]
fn sighup_switches_to_the_table_behind_the_link() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    FIRST.build(&path("first"));
    Version(0xcd).build(&path("second"));
    symlink("first", path("current")).unwrap();
    let mut serving = Serving::start(path("current").to_str().unwrap());

    serving.signal("-HUP");
    serving.wait_for_log("the table is the one that is served; nothing to switch");
    std::fs::remove_file(path("current")).unwrap();
    serving.signal("-HUP");
    let refused = serving.wait_for_log("the new table is refused; the old one goes on");
    let reason = refused["error"].as_str().unwrap();
    assert!(reason.contains("current"), "{reason}");
    symlink("second", path("current")).unwrap();
    serving.signal("-HUP");
    let opened = serving.wait_for_log("table open");
    assert_eq!(opened["table.id"], Version(0xcd).table_id());
    serving.wait_for_log("switched to the new table");
}

/// A table is rolled by publishing it: nobody sends a signal or starts anything again.
#[test]
fn a_table_that_is_published_is_fetched_and_served() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mapped = |options: &mut BuildOptions| options.store = StoreKind::Mapped;
    FIRST.build_with(path("published").as_ref(), &fgram_set(), mapped);

    let fetch = [
        "fetch",
        "--from",
        &path("published"),
        "--to",
        &path("disk"),
        "--json",
    ];
    let fetched = json(&embed_service(&fetch).output().unwrap());
    assert_eq!(fetched["table_id"], FIRST.table_id());
    let mut sidecar = embed_service(&fetch)
        .args(["--every", "100ms"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(sidecar.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["copied_bytes"], 0);
    let table = path("disk/current");
    let mut serving = Serving::start_with(&table, &["--watch-table", "100ms"]);

    Version(0xcd).build_with(path("next").as_ref(), &fgram_set(), mapped);
    std::fs::rename(path("published"), path("before")).unwrap();
    std::fs::rename(path("next"), path("published")).unwrap();
    assert_eq!(next()["table_id"], Version(0xcd).table_id());
    serving.wait_for_log("switched to the new table");

    let pid = sidecar.id().to_string();
    let kill = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(kill.unwrap().success());
    assert_eq!(sidecar.wait().unwrap().code(), Some(0));
}

#[test]
fn load_measures_a_running_server() {
    let (_dir, path) = table();
    let serving = Serving::start(&path);
    let address = serving.address();
    let load = ["load", "--addr", address, "--table", &path, "--seconds=1"];
    let load = [&load[..], &["--warm-up-seconds=0", "--max-requests=200"]].concat();
    for shape in ["--windows=8", "--prompt-positions=100"] {
        let output = embed_service(&load).args([shape, "--json"]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let value = |metric: &str| {
            let line = lines.iter().find(|line| line["metric"] == metric);
            let line = line.unwrap_or_else(|| panic!("{metric} is missing in {text}"));
            assert!(
                line["case"]
                    .as_str()
                    .unwrap()
                    .starts_with(&shape[2..].replace('-', "_"))
            );
            line["value"].as_f64().unwrap()
        };
        assert!(value("p50") > 0.0 && value("p99") >= value("p50"));
        assert!(value("rows") > 0.0);
        assert_eq!(value("errors"), 0.0);
    }
    let output = embed_service(&load).arg("--windows=9999").output().unwrap();
    assert!(stderr(&output).contains("limits"), "{}", stderr(&output));
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
    // Rows of sled, and more for keys and index.
    assert!(report["bytes"].as_u64() > report["row_bytes"].as_u64());
    assert!(report["seconds"].as_f64() > Some(0.0));

    let output = embed_service(&["verify", "--sha256", "--json", "--table", &path]).output();
    assert_eq!(json(&output.unwrap())["sha256"], true);

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
fn upsert_makes_a_table_the_other_version_and_refuses_one_in_use() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (table, next, small) = (path("table"), path("next"), path("small"));
    let second = Version(0xcd);
    FIRST.build(table.as_ref());
    second.build_with(next.as_ref(), &fgram_set(), |options| {
        options.store = StoreKind::Mapped;
    });
    second.build_with(small.as_ref(), &fgram_set(), |options| options.dim = 3);
    let upsert = |from: &str| {
        let args = ["upsert", "--json", "--table", &table, "--from", from];
        embed_service(&args).output().unwrap()
    };
    let refused = upsert(&small);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("dim"), "{}", stderr(&refused));

    let serving = Serving::start(&table);
    let in_use = stderr(&upsert(&next));
    assert!(in_use.contains("open in another process"), "{in_use}");
    drop(serving);

    let summary = json(&upsert(&next));
    assert_eq!(summary["event"], "upserted");
    assert_eq!(summary["table_id"], second.table_id());
    assert_eq!(
        (&summary["replaced"], &summary["unchanged"]),
        (&400.into(), &0.into())
    );
    let again = json(&upsert(&next));
    assert_eq!(
        (&again["replaced"], &again["unchanged"]),
        (&0.into(), &400.into())
    );
    let verified = embed_service(&["verify", "--json", "--table", &table]).output();
    assert_eq!(json(&verified.unwrap())["table_id"], second.table_id());
    // It is served as the other version.
    let mut serving = Serving::start(&table);
    assert_eq!(
        serving.wait_for_log("table open")["table.id"],
        second.table_id()
    );
}

#[test]
fn tools_work_beside_a_running_server_where_the_store_lets_them() {
    let dir = TempDir::new().unwrap();
    for (name, store) in [("sled", StoreKind::Sled), ("mapped", StoreKind::Mapped)] {
        let table = dir.path().join(name);
        FIRST.build_with(&table, &fgram_set(), |options| options.store = store);
        let path = table.to_str().unwrap();
        let _serving = Serving::start(path);
        let inspected = embed_service(&["inspect", "--json", "--table", path]).output();
        assert_eq!(json(&inspected.unwrap())["store"], name);
        let verified = embed_service(&["verify", "--json", "--table", path])
            .output()
            .unwrap();
        match store {
            StoreKind::Mapped => assert_eq!(json(&verified)["rows"], 400),
            StoreKind::Sled => {
                let text = stderr(&verified);
                assert!(text.contains("open in another process"), "{text}");
            }
        }
    }
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
