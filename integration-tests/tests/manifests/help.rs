//! What the programs say of themselves.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    process::Command,
    sync::{Arc, LazyLock, Mutex},
};

use integration_tests::binaries::binaries;

/// What a program says of one of its commands.
#[derive(Debug, Default)]
pub(crate) struct Help {
    pub(crate) flags: BTreeSet<String>,
    pub(crate) variables: BTreeSet<String>,
}

fn binary(program: &str) -> &'static PathBuf {
    match program {
        "embed-service" => &binaries().embed_service,
        "decoder-service" => &binaries().decoder_service,
        "trainer" => &binaries().trainer,
        other => panic!("{other} is no program"),
    }
}

/// Asks a program for the help of a command; `None` when it has no such command.
pub(crate) fn help(program: &'static str, command: &str) -> Option<Arc<Help>> {
    type Known = Mutex<HashMap<(&'static str, String), Option<Arc<Help>>>>;
    static KNOWN: LazyLock<Known> = LazyLock::new(Known::default);
    let mut known = KNOWN.lock().unwrap();
    let entry = known.entry((program, command.to_owned()));
    entry
        .or_insert_with(|| ask(program, command).map(Arc::new))
        .clone()
}

fn ask(program: &str, command: &str) -> Option<Help> {
    let mut asked = Command::new(binary(program));
    let output = asked
        .args([command, "--help"])
        .output()
        .expect("start a program");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then(|| parse(&text))
}

/// Reads clap's help: a flag begins a line, `[env: NAME=…]` may be broken between two.
fn parse(text: &str) -> Help {
    let is_flag = |word: &&str| word.starts_with("--");
    let clean = |word: &str| word.trim_end_matches([',', ']', '.']).to_owned();
    let lines = text
        .lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with('-'));
    let flags = lines
        .filter_map(|line| line.split_whitespace().find(is_flag))
        .map(clean);
    let words: Vec<_> = text.split_whitespace().collect();
    let pairs = words.windows(2).filter(|pair| pair[0] == "[env:");
    let variables = pairs.filter_map(|pair| Some(pair[1].split_once('=')?.0.to_owned()));
    Help {
        flags: flags.collect(),
        variables: variables.collect(),
    }
}

#[test]
fn help_is_read_across_lines() {
    let help = parse(
        "      --listen <ADDRESS>\n          As --other does. [env:\n          SCONE_LISTEN=]\n  -h, --help\n",
    );
    assert_eq!(
        help.flags.iter().collect::<Vec<_>>(),
        ["--help", "--listen"]
    );
    assert_eq!(help.variables.iter().collect::<Vec<_>>(), ["SCONE_LISTEN"]);
}
