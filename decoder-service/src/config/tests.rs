#![allow(clippy::unwrap_used, reason = "tests")]
use std::path::Path;

use clap::Parser;
use scone_model::{Dtype, WeightType};

use super::*;
use crate::error::Error;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    serve: ServeArgs,
}

fn parse(args: &[&str]) -> Result<ServeArgs, clap::Error> {
    let args = ["test", "--cache-dir", "/c"].iter().chain(args);
    Cli::try_parse_from(args).map(|cli| cli.serve)
}

fn check(args: &[&str]) -> Result<Config, Error> {
    parse(args).unwrap().check()
}

/// One mistake of every part: model, device, threads, embed tier, limits.
#[test]
fn all_mistakes_are_named_together_with_their_limits() {
    let error = check(&[
        "--model=/no/such/model",
        "--device=cuda:99",
        "--io-threads=0",
        "--embed=a,b:1,c",
        "--embed-poll-interval=0s",
        "--lookup-timeout=0s",
        "--max-batch=0",
        "--max-queue=0",
        "--max-queue-time=0s",
        "--max-per-client=2",
        "--max-step-tokens=0",
    ])
    .unwrap_err();
    let Error::Flags(problems) = &error else {
        panic!("{error}");
    };
    let expected = [
        "--model /no/such/model: no such directory",
        "--device cuda:99: ",
        "--embed a: ",
        "--embed c: ",
        "--io-threads is 0; allowed is 1 to 64",
        "--lookup-timeout is 0; ",
        "--embed-poll-interval is 0ms; at least 10ms",
        "--max-batch is 0; allowed is 1 to 1024",
        "--max-queue is 0; allowed is 1 to 65536",
        "--max-per-client is 2; allowed is 1 to 1",
        "--max-queue-time is 0; at least 1ms is needed",
        "--max-step-tokens is 0; allowed is 1 ",
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, beginning) in problems.iter().zip(expected) {
        assert!(problem.starts_with(beginning), "{problem}");
    }
    assert_eq!(error.to_string().lines().count(), 1 + expected.len());
}

#[test]
fn mistakes_of_one_source_of_rows_are_found_with_the_others() {
    let error = check(&["--model=/no/model", "--table=/no/table", "--threads=9999"]);
    let text = error.unwrap_err().to_string();
    for part in [
        "--model /no/model",
        "--table /no/table",
        "--threads is 9999",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let args = ["--model=.", "--max-batch=64", "--max-step-tokens=64"];
    let text = check(&args).unwrap_err().to_string();
    assert!(text.contains("allowed is 65"), "{text}");
    let most = usize::MAX.to_string();
    let text = check(&["--model=.", "--max-batch", &most]).unwrap_err();
    assert!(text.to_string().contains("--max-batch is"), "{text}");
}

#[test]
fn tables_have_names_of_their_own_and_share_the_memory() {
    let config = check(&["--model=.", "--table=a=.", "--table=b=.", "--hot-bytes=90"]).unwrap();
    assert!(matches!(config.model.embed, EmbedSource::FromModel(_)));
    let tables: Vec<String> = config
        .model
        .tables
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(tables, ["a=.", "b=."]);
    assert_eq!(config.model.table.hot_bytes, 30);
    let config = check(&["--model=.", "--table=.,a=."]).unwrap();
    assert!(matches!(config.model.embed, EmbedSource::Table(dir) if dir == Path::new(".")));
    assert_eq!(config.model.tables.len(), 1);
    let twice = check(&["--model=.", "--table=a=.", "--table=a=."]).unwrap_err();
    assert!(
        twice.to_string().contains("the a table is there twice"),
        "{twice}"
    );
    let none = parse(&["--table", "none=."]).unwrap_err().to_string();
    assert!(none.contains("no name of a table"), "{none}");
}

#[test]
fn device_and_dtype_default_to_what_is_always_there() {
    let config = check(&["--model=."]).unwrap();
    assert!(config.model.device.is_cpu());
    assert_eq!(config.model.dtype, Dtype::F32);
    for (flag, value) in [
        ("--device", "tpu"),
        ("--device", "cuda:x"),
        ("--dtype", "f8"),
    ] {
        let error = parse(&[flag, value]).unwrap_err().to_string();
        assert!(error.contains(flag) && error.contains(value), "{error}");
    }
    let error = check(&["--model=.", "--dtype=bf16"]).unwrap_err();
    assert!(error.to_string().contains("--dtype bf16 needs a GPU"));
}

#[test]
fn weights_of_every_type_are_for_the_cpu_and_f32_for_gpus_too() {
    let default = check(&["--model=."]).unwrap().model.weights;
    assert_eq!(default, WeightType::default_here());
    for weights in WeightType::ALL {
        let flag = format!("--weights={weights}");
        let config = check(&["--model=.", &flag]).unwrap();
        assert_eq!(config.model.weights, weights);
        let refused = check(&["--model=.", "--device=cuda:99", &flag]).unwrap_err();
        let named = refused
            .to_string()
            .contains(&format!("--weights {weights} needs"));
        assert_eq!(named, weights != WeightType::F32, "{refused}");
    }
    let error = parse(&["--weights", "f16"]).unwrap_err().to_string();
    assert!(
        error.contains("--weights") && error.contains("int4"),
        "{error}"
    );
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_is_not_compiled_in_is_refused_by_name() {
    let error = check(&["--model=.", "--device=cuda"])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("--device cuda:0") && error.contains("cpu"),
        "{error}"
    );
}

#[test]
fn schemes_of_addresses_agree_with_the_flags_of_tls() {
    let refused = |args: &[&str]| check(args).unwrap_err().to_string();
    let plain = refused(&["--model=.", "--embed=https://a:1"]);
    assert!(plain.contains("--embed https://a:1: TLS needs"), "{plain}");
    let ca = "--embed-tls-ca=/no/ca.crt";
    let mixed = refused(&["--model=.", "--embed=http://a:1", ca]);
    assert!(mixed.contains("leave http:// away"), "{mixed}");
    assert!(
        mixed.contains("--embed-tls-ca: cannot read /no/ca.crt"),
        "{mixed}"
    );
    let nobody = parse(&[ca]).unwrap_err().to_string();
    assert!(nobody.contains("--embed <ADDRESSES>"), "{nobody}");
    let half = parse(&["--embed=a:1", "--embed-tls-cert=/a", ca]).unwrap_err();
    assert!(half.to_string().contains("--embed-tls-key"), "{half}");
}

#[test]
fn several_replicas_may_be_named() {
    let config = check(&["--model", ".", "--embed", "http://a:1,b:2,file:/c"]).unwrap();
    let EmbedSource::Remote(remote) = config.model.embed else {
        panic!("not remote");
    };
    let addresses: Vec<String> = remote.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["a:1", "b:2", "file:/c"]);
}
