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
    /// What a flag is when it is not given.
    pub(crate) defaults: HashMap<String, String>,
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

/// Reads clap's help: a flag begins a line, `[env: NAME=…]` may be broken between two, and
/// `[default: …]` has one of its own.
fn parse(text: &str) -> Help {
    let words: Vec<_> = text.split_whitespace().collect();
    let pairs = words.windows(2).filter(|pair| pair[0] == "[env:");
    let variables = pairs.filter_map(|pair| Some(pair[1].split_once('=')?.0.to_owned()));
    let mut help = Help {
        variables: variables.collect(),
        ..Help::default()
    };
    let mut flag = None;
    for line in text.lines() {
        if let Some(named) = flag_of(line) {
            help.flags.insert(named.clone());
            flag = Some(named);
        }
        let default = line.trim().strip_prefix("[default: ");
        if let (Some(flag), Some(default)) = (&flag, default) {
            let default = default.trim_end_matches(']').to_owned();
            help.defaults.insert(flag.clone(), default);
        }
    }
    help
}

/// The flag that is told of from this line on. Texts, too, may begin a line with a flag's name, farther in.
fn flag_of(line: &str) -> Option<String> {
    let flag = line.trim_start();
    if !flag.starts_with('-') || line.len() - flag.len() >= 8 {
        return None;
    }
    let named = flag.split_whitespace().find(|word| word.starts_with("--"));
    named.map(|word| word.trim_end_matches([',', ']', '.']).to_owned())
}

#[test]
fn help_is_read_across_lines() {
    let help = parse(
        "      --listen <ADDRESS>\n          As --other does,\n          --another too. [env:\n          SCONE_LISTEN=]\n          [default: a:1]\n  -h, --help\n",
    );
    assert_eq!(
        help.flags.iter().collect::<Vec<_>>(),
        ["--help", "--listen"]
    );
    assert_eq!(help.variables.iter().collect::<Vec<_>>(), ["SCONE_LISTEN"]);
    assert_eq!(help.defaults["--listen"], "a:1");
    assert_eq!(help.defaults.len(), 1);
}
