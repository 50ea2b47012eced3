//! The first seconds of a real process: its port while the model loads, and the table that it
//! builds for itself.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use common::{Fixture, eventually, fixture};
use decoder_service::SERVICE_NAME;
use scone_proto::decoder::v1::{
    GenerateRequest, GetModelInfoRequest, SamplingParameters,
    decoder_service_client::DecoderServiceClient, generate_request::Prompt,
};
use tokio::runtime::Runtime;
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

/// The program, without the flags of whoever runs the tests.
fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_decoder-service"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SCONE_") {
            command.env_remove(name);
        }
    }
    command.args(args).env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// A `decoder-service serve`; killed when it is dropped.
struct Serve {
    child: Child,
    address: String,
    runtime: Runtime,
}

impl Serve {
    fn start(model: &Path, cache: &Path) -> Self {
        // Nothing says which port is taken before the model is loaded, so it is chosen here.
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let mut command = command(&[
            "serve",
            "--listen",
            &address,
            "--http-listen",
            "127.0.0.1:0",
        ]);
        command.arg("--model").arg(model);
        command.arg("--cache-dir").arg(cache);
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        Self {
            child: command.spawn().unwrap(),
            address,
            runtime: Runtime::new().unwrap(),
        }
    }

    /// A connection, once the port answers.
    fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address)).unwrap();
        let mut channel = None;
        eventually("the port answers", || {
            channel = self.runtime.block_on(endpoint.connect()).ok();
            channel.is_some()
        });
        channel.unwrap()
    }

    fn health(&self, channel: &Channel) -> ServingStatus {
        let mut client = HealthClient::new(channel.clone());
        let request = HealthCheckRequest {
            service: SERVICE_NAME.to_owned(),
        };
        let answer = self.runtime.block_on(client.check(request));
        answer.unwrap().into_inner().status()
    }

    /// Number of tokens of a greedy answer.
    fn generate(&self, channel: &Channel) -> Result<usize, Status> {
        let request = GenerateRequest {
            prompt: Some(Prompt::Text("the fox".to_owned())),
            sampling: Some(SamplingParameters {
                max_tokens: Some(5),
                temperature: Some(0.0),
                ignore_eos: Some(true),
                ..SamplingParameters::default()
            }),
            request_id: String::new(),
            table: String::new(),
        };
        let mut client = DecoderServiceClient::new(channel.clone());
        self.runtime.block_on(async {
            let mut stream = client.generate(request).await?.into_inner();
            let mut tokens = 0;
            while let Some(response) = stream.message().await? {
                tokens += response.tokens.len();
            }
            Ok(tokens)
        })
    }

    fn model_info(&self, channel: &Channel) -> Result<String, Status> {
        let mut client = DecoderServiceClient::new(channel.clone());
        let answer = client.get_model_info(GetModelInfoRequest {});
        Ok(self.runtime.block_on(answer)?.into_inner().embed_mode)
    }

    /// SIGTERM; the process must end well, and soon.
    fn terminate(mut self) {
        let kill = format!("kill -TERM {}", self.child.id());
        // By the shell: sending a signal from here would take `unsafe` or one more dependency.
        assert!(
            Command::new("sh")
                .args(["-c", &kill])
                .status()
                .unwrap()
                .success()
        );
        let mut status = None;
        eventually("the process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(status.unwrap().code(), Some(0));
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn generate(model: &Path, cache: &Path) -> Output {
    let mut command = command(&["generate", "--max-tokens=5", "--temperature=0", "the fox"]);
    command.arg("--model").arg(model);
    command.arg("--cache-dir").arg(cache);
    command.output().unwrap()
}

/// What is below a cache folder with the extension, or with none.
fn cached(cache: &Path, extension: Option<&str>) -> Option<PathBuf> {
    let entries = fs::read_dir(cache.join("tables")).ok()?;
    entries
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().and_then(|e| e.to_str()) == extension)
}

/// A model with a table in its cache.
struct Cached {
    fixture: Fixture,
    _folder: tempfile::TempDir,
    cache: PathBuf,
    table: PathBuf,
    lock: PathBuf,
    /// What the model writes.
    text: Vec<u8>,
}

fn cached_table() -> Cached {
    let (fixture, folder) = (fixture(), tempfile::tempdir().unwrap());
    let cache = folder.path().to_owned();
    let output = generate(&fixture.model, &cache);
    assert!(output.status.success(), "{output:?}");
    assert!(!output.stdout.is_empty());
    Cached {
        table: cached(&cache, None).unwrap(),
        lock: cached(&cache, Some("lock")).unwrap(),
        fixture,
        _folder: folder,
        cache,
        text: output.stdout,
    }
}

#[test]
fn the_port_says_that_the_model_is_loading_and_serves_it_then() {
    let cached = cached_table();
    fs::remove_dir_all(&cached.table).unwrap();
    // As another process that builds the table.
    let building = File::open(&cached.lock).unwrap();
    building.lock().unwrap();
    let serve = Serve::start(&cached.fixture.model, &cached.cache);
    let channel = serve.channel();
    assert_eq!(serve.health(&channel), ServingStatus::NotServing);
    for status in [
        serve.generate(&channel).unwrap_err(),
        serve.model_info(&channel).unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("loading"), "{status}");
        let hints = status.metadata().keys();
        assert_eq!(
            hints
                .filter(|key| format!("{key:?}").contains("retry"))
                .count(),
            1,
            "{status:?}"
        );
    }
    drop(building);
    eventually("the model is loaded", || {
        serve.health(&channel) == ServingStatus::Serving
    });
    assert_eq!(serve.generate(&channel).unwrap(), 5);
    assert_eq!(serve.model_info(&channel).unwrap(), "embedded");
    serve.terminate();
}

#[test]
fn sigterm_ends_a_process_that_waits_for_anothers_build() {
    let cached = cached_table();
    fs::remove_dir_all(&cached.table).unwrap();
    let building = File::open(&cached.lock).unwrap();
    building.lock().unwrap();
    let serve = Serve::start(&cached.fixture.model, &cached.cache);
    assert_eq!(serve.health(&serve.channel()), ServingStatus::NotServing);
    // Long enough to load the model and to come to the lock.
    std::thread::sleep(Duration::from_millis(500));
    serve.terminate();
    assert!(!cached.table.exists());
    drop(building);
}

#[test]
fn sigterm_ends_a_process_that_builds_a_table() {
    let cache = tempfile::tempdir().unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    let serve = Serve::start(&demo, cache.path());
    eventually("it builds", || {
        cached(cache.path(), Some("partial")).is_some()
    });
    serve.terminate();
    let partial = cached(cache.path(), Some("partial")).expect("it waits to be taken up again");
    assert!(partial.join("build.json").exists());
    assert_eq!(cached(cache.path(), None), None, "no table yet");
}

#[test]
fn one_table_serves_and_generates_at_once() {
    let cached = cached_table();
    let manifest = fs::read_to_string(cached.table.join("table.json")).unwrap();
    assert!(manifest.contains("\"mapped\""), "{manifest}");
    let serve = Serve::start(&cached.fixture.model, &cached.cache);
    let channel = serve.channel();
    eventually("the model is loaded", || {
        serve.health(&channel) == ServingStatus::Serving
    });
    for _ in 0..2 {
        let output = generate(&cached.fixture.model, &cached.cache);
        assert_eq!(output.stdout, cached.text, "{output:?}");
        assert_eq!(serve.generate(&channel).unwrap(), 5);
    }
    serve.terminate();
}

#[test]
fn a_folder_that_cannot_be_written_serves_the_table_that_is_there() {
    let cached = cached_table();
    // A directory is no lock file to anybody, not even to root, who may write to any folder.
    fs::remove_file(&cached.lock).unwrap();
    fs::create_dir(&cached.lock).unwrap();
    let output = generate(&cached.fixture.model, &cached.cache);
    assert_eq!(output.stdout, cached.text, "{output:?}");

    // Without the table it says what it cannot do.
    fs::remove_dir_all(&cached.table).unwrap();
    let output = generate(&cached.fixture.model, &cached.cache);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(message.contains(cached.lock.to_str().unwrap()), "{message}");
}

#[test]
fn a_damaged_table_is_built_again_with_a_word_in_the_log() {
    let cached = cached_table();
    let file = |name: &str| cached.table.join(name);
    let cut = |name: &str| {
        let bytes = fs::read(file(name)).unwrap();
        fs::write(file(name), &bytes[..bytes.len() / 2]).unwrap();
    };
    let flip = |name: &str| {
        let mut bytes = fs::read(file(name)).unwrap();
        bytes[20] ^= 1;
        fs::write(file(name), bytes).unwrap();
    };
    let damages: [(&str, &dyn Fn()); 5] = [
        ("a flipped bit of the manifest", &|| flip("table.json")),
        ("no manifest", &|| {
            fs::remove_file(file("table.json")).unwrap()
        }),
        ("half of the rows", &|| cut("rows.bin")),
        ("no keys", &|| fs::remove_file(file("keys.bin")).unwrap()),
        ("a flipped bit in a header", &|| flip("index.bin")),
    ];
    // Tables of other stores and versions belong to other programs.
    let older = cached.table.with_file_name("v2-another");
    fs::create_dir(&older).unwrap();
    for (damage, apply) in damages {
        apply();
        let output = generate(&cached.fixture.model, &cached.cache);
        assert_eq!(output.stdout, cached.text, "{damage}: {output:?}");
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(log.contains("building it again"), "{damage}: {log}");
        let again = generate(&cached.fixture.model, &cached.cache);
        assert_eq!(again.stdout, cached.text, "{damage}");
        let log = String::from_utf8(again.stderr).unwrap();
        assert!(!log.contains("building it again"), "{damage}: {log}");
    }
    assert!(older.is_dir());
}

#[test]
fn a_table_that_building_cannot_mend_is_left_alone() {
    let cached = cached_table();
    let refused = |part: &str| {
        let before = fs::metadata(&cached.table).unwrap().ino();
        let output = generate(&cached.fixture.model, &cached.cache);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{message}");
        assert!(message.contains(part), "{message}");
        assert!(!message.contains("building it again"), "{message}");
        assert_eq!(fs::metadata(&cached.table).unwrap().ino(), before);
    };
    // A tokenizer that the f-grams were not mined with.
    let tokenizer = cached.fixture.model.join("tokenizer.json");
    let mut text = fs::read(&tokenizer).unwrap();
    text.push(b'\n');
    fs::write(&tokenizer, &text).unwrap();
    refused("tokenizer");
    text.pop();
    fs::write(&tokenizer, &text).unwrap();
    // A file that the system cannot read; permissions would not stop root.
    let rows = cached.table.join("rows.bin");
    fs::rename(&rows, cached.cache.join("rows")).unwrap();
    symlink(&rows, &rows).unwrap();
    refused("rows.bin");
}

#[test]
fn what_a_stopped_build_left_is_thrown_away_when_it_is_damaged() {
    let cached = cached_table();
    let partial = cached.table.with_extension("partial");
    fs::remove_dir_all(&cached.table).unwrap();
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("build.json"), "{").unwrap();
    let output = generate(&cached.fixture.model, &cached.cache);
    assert_eq!(output.stdout, cached.text, "{output:?}");
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("starting anew"), "{log}");
    assert!(cached.table.is_dir() && !partial.exists());
}
