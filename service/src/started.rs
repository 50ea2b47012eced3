//! What a process is and how it was started: for `--version` and `GET /debug/config`.

use std::sync::{LazyLock, OnceLock};

use clap::{Arg, ArgMatches, Command, parser::ValueSource};
use serde_json::{Map, Value, json};

/// Endings of flags whose values nobody should read in a log or an answer. Flags that name a file
/// with a secret in it end otherwise.
const SECRET: [&str; 4] = ["password", "secret", "api-key", "auth-token"];

/// As the facts of this process; set once, by whoever parsed the command line.
static STARTED: OnceLock<Value> = OnceLock::new();

/// The commit that the program was built from, where the build was told (`SCONE_REVISION`).
pub const REVISION: Option<&str> = option_env!("SCONE_REVISION");

/// The version, and the revision behind it: `0.1.0 (4f982e5)`. For clap's `version`.
#[must_use]
pub fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| match REVISION {
        Some(revision) if !revision.is_empty() => {
            format!("{} ({revision})", env!("CARGO_PKG_VERSION"))
        }
        _ => env!("CARGO_PKG_VERSION").to_owned(),
    });
    &VERSION
}

/// Keeps what was asked for on the command line, for `GET /debug/config` of this process. Only the
/// first call counts.
pub fn record(program: &Command, matches: &ArgMatches) {
    // A process that parses twice, as tests may, tells of the first.
    let _ = STARTED.set(facts(program, matches));
}

/// What [`record`] kept.
pub(crate) fn recorded() -> Option<&'static Value> {
    STARTED.get()
}

/// Program, version, command, and each of its flags with its value and where that came from.
fn facts(program: &Command, matches: &ArgMatches) -> Value {
    let (name, chosen) = matches.subcommand().unwrap_or(("", matches));
    let command = program.find_subcommand(name).unwrap_or(program);
    let global = program.get_arguments().filter(|arg| arg.is_global_set());
    let flags: Map<_, _> = command
        .get_arguments()
        .chain(global)
        .filter_map(|arg| flag(arg, chosen))
        .collect();
    json!({
        "program": program.get_name(),
        "version": env!("CARGO_PKG_VERSION"),
        "revision": REVISION,
        "command": name,
        "flags": flags,
    })
}

fn flag(arg: &Arg, matches: &ArgMatches) -> Option<(String, Value)> {
    let name = arg.get_long()?;
    let from = match matches.value_source(arg.get_id().as_str())? {
        ValueSource::DefaultValue => "default",
        ValueSource::EnvVariable => "environment",
        _ => "command line",
    };
    let secret = SECRET.iter().any(|ending| name.ends_with(ending));
    let values = matches.get_raw(arg.get_id().as_str())?;
    let value = match secret {
        true => "(set)".to_owned(),
        false => {
            let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
            values.join(",")
        }
    };
    Some((format!("--{name}"), json!({ "value": value, "from": from })))
}

#[cfg(test)]
mod tests {
    use clap::{Args, CommandFactory as _, Parser, Subcommand};

    use super::*;
    use crate::telemetry::LogArgs;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Commands,
        #[command(flatten)]
        log: LogArgs,
    }

    #[derive(Subcommand)]
    enum Commands {
        Serve(Serve),
    }

    #[derive(Args)]
    struct Serve {
        #[arg(long, default_value_t = 3)]
        max_tokens: u32,
        #[arg(long, value_delimiter = ',')]
        embed: Vec<String>,
        #[arg(long)]
        api_key: Option<String>,
        #[arg(long)]
        api_key_file: Option<String>,
        #[arg(long)]
        absent: Option<u32>,
    }

    #[test]
    fn flags_are_told_with_their_source_and_secrets_are_not() {
        let line = "program serve --embed a,b --api-key hush --api-key-file /keys --log warn";
        let matches = Cli::command().get_matches_from(line.split(' '));
        let facts = facts(&Cli::command(), &matches);
        assert_eq!(facts["command"], "serve");
        let flags = &facts["flags"];
        let of = |value: &str, from: &str| json!({ "value": value, "from": from });
        assert_eq!(flags["--max-tokens"], of("3", "default"));
        assert_eq!(flags["--embed"], of("a,b", "command line"));
        assert_eq!(flags["--api-key"], of("(set)", "command line"));
        assert_eq!(flags["--api-key-file"], of("/keys", "command line"));
        assert_eq!(flags["--log"], of("warn", "command line"));
        assert_eq!(flags["--absent"], Value::Null);
        assert!(!facts.to_string().contains("hush"), "{facts}");
    }
}
