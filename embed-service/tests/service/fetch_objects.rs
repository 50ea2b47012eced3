//! `fetch` from an object store: S3's protocol, as far as reading goes, over plain HTTP.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use scone_fgram::{StoreKind, Table, TableOptions};
use tempfile::TempDir;

use crate::support::{FIRST, fgram_set};

/// Objects by key, and the requests that were made: method, target, range.
#[derive(Default)]
struct Bucket {
    objects: BTreeMap<String, Vec<u8>>,
    /// The first read of this key is cut off in the middle.
    cut: Mutex<Option<String>>,
    ranges: Mutex<Vec<String>>,
}

impl Bucket {
    fn of(dir: &Path) -> Self {
        let mut bucket = Self::default();
        bucket.add(dir, "tables/demo");
        bucket
    }

    fn add(&mut self, dir: &Path, prefix: &str) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let key = format!("{prefix}/{}", entry.file_name().to_str().unwrap());
            if entry.path().is_dir() {
                self.add(&entry.path(), &key);
            } else {
                self.objects.insert(key, fs::read(entry.path()).unwrap());
            }
        }
    }

    /// Serves until the test ends; returns the endpoint.
    fn serve(self: Arc<Self>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let bucket = Arc::clone(&self);
                thread::spawn(move || bucket.answer(stream.unwrap()));
            }
        });
        endpoint
    }

    /// One request a connection.
    fn answer(&self, mut stream: TcpStream) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        let head: Vec<_> = lines
            .map(|line| line.unwrap())
            .take_while(|l| !l.is_empty())
            .collect();
        let target = first.split(' ').nth(1).unwrap();
        let range = head.iter().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let value = name.eq_ignore_ascii_case("range").then_some(value)?;
            let (from, to) = value.strip_prefix("bytes=")?.split_once('-')?;
            Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()))
        });
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let key = path
            .strip_prefix("/bucket")
            .unwrap()
            .trim_start_matches('/');
        if query.contains("list-type=2") {
            let xml = self.list();
            reply(&mut stream, "200 OK", "", xml.as_bytes(), xml.len());
            return;
        }
        match self.objects.get(key) {
            None => reply(&mut stream, "404 Not Found", "", b"", 0),
            Some(bytes) => {
                let (from, to) = range.unwrap_or((0, None));
                let to = to.map_or(bytes.len(), |last| bytes.len().min(last + 1));
                self.ranges.lock().unwrap().push(format!("{key} {from}"));
                let body = &bytes[from..to];
                let facts = format!(
                    "ETag: \"1\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
                     Content-Range: bytes {from}-{}/{}\r\n",
                    to.max(1) - 1,
                    bytes.len()
                );
                let status = if range.is_some() {
                    "206 Partial Content"
                } else {
                    "200 OK"
                };
                let mut cut = self.cut.lock().unwrap();
                let sent = match cut.as_deref() == Some(key) {
                    true => {
                        *cut = None;
                        &body[..body.len() / 2]
                    }
                    false => body,
                };
                reply(&mut stream, status, &facts, sent, body.len());
            }
        }
    }

    fn list(&self) -> String {
        let contents: String = self
            .objects
            .iter()
            .filter(|(key, _)| key.contains("/rows.sled/"))
            .map(|(key, bytes)| {
                format!(
                    "<Contents><Key>{key}</Key><Size>{}</Size><ETag>\"1\"</ETag>\
                     <LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>",
                    bytes.len()
                )
            })
            .collect();
        format!("<ListBucketResult>{contents}</ListBucketResult>")
    }
}

fn reply(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8], length: usize) {
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    // A client that has seen enough may have left.
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body));
}

fn fetch(endpoint: &str, url: &str, to: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embed-service"));
    command
        .args(["fetch", "--json", "--from", url, "--to"])
        .arg(to);
    command
        .env("AWS_ENDPOINT", endpoint)
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_SKIP_SIGNATURE", "true")
        .env("AWS_REGION", "nowhere");
    command
}

#[test]
fn a_table_comes_out_of_a_bucket_and_a_cut_download_goes_on() {
    for store in StoreKind::ALL {
        let dir = TempDir::new().unwrap();
        let (published, disk) = (dir.path().join("published"), dir.path().join("disk"));
        FIRST.build_with(&published, &fgram_set(), |options| options.store = store);
        let bucket = Arc::new(Bucket::of(&published));
        let endpoint = Arc::clone(&bucket).serve();
        let run = |url: &str| fetch(&endpoint, url, &disk).output().unwrap();

        *bucket.cut.lock().unwrap() = Some("tables/demo/keys.bin".to_owned());
        let first = run("s3://bucket/tables/demo");
        if !first.status.success() {
            // Half of the file is kept, and asked for no more.
            assert_eq!(first.status.code(), Some(1), "{first:?}");
            let second = run("s3://bucket/tables/demo");
            assert!(second.status.success(), "{second:?}");
        }
        let half = bucket.objects["tables/demo/keys.bin"].len() / 2;
        let ranges = bucket.ranges.lock().unwrap().clone();
        assert!(
            ranges.contains(&format!("tables/demo/keys.bin {half}")),
            "{ranges:?}"
        );
        let table = Table::open(&disk.join("current"), &TableOptions::default()).unwrap();
        assert_eq!(table.verify(|_, _| {}).unwrap().rows, 400);

        let missing = run("s3://bucket/tables/other");
        let error = String::from_utf8_lossy(&missing.stderr);
        assert!(
            error.contains("s3://bucket/tables/other/table.json does not exist"),
            "{error}"
        );
    }
}
