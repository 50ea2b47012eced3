//! The `trainer` binary: parse, start logging, run one subcommand.

use std::sync::LazyLock;

use clap::Parser;
use trainer::commands::{Command, output};
use trainer::progress;
use trainer::stop::{self, Stopped};

/// Batch jobs for SCONE models: text in, model directory and f-gram table out.
#[derive(Debug, Parser)]
#[command(name = "trainer", version = version(), max_term_width = 100)]
struct Args {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every subcommand.
#[derive(Debug, clap::Args)]
struct GlobalArgs {
    /// Log filter, as in `info` or `trainer=debug,warn`; logs go to stderr.
    #[arg(
        long,
        env = "SCONE_LOG",
        default_value = "info",
        global = true,
        help_heading = "General"
    )]
    log: String,
    /// Worker threads; 0 takes one per core.
    #[arg(
        long,
        env = "SCONE_THREADS",
        default_value_t = 0,
        global = true,
        help_heading = "General"
    )]
    threads: usize,
}

/// The version, and the revision behind it where the build was told (`SCONE_REVISION`).
fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| match option_env!("SCONE_REVISION") {
        Some(revision) if !revision.is_empty() => {
            format!("{} ({revision})", env!("CARGO_PKG_VERSION"))
        }
        _ => env!("CARGO_PKG_VERSION").to_owned(),
    });
    &VERSION
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    stop::install();
    progress::init_logging(&args.global.log)?;
    rayon::ThreadPoolBuilder::new()
        .num_threads(args.global.threads)
        .build_global()?;
    match args.command.run() {
        // Whoever reads our output has seen enough.
        Err(error) if output::is_closed_pipe(&error) => Ok(()),
        Err(error) if error.is::<Stopped>() => {
            eprintln!("trainer: {error}");
            std::process::exit(stop::EXIT_CODE)
        }
        result => result,
    }
}
