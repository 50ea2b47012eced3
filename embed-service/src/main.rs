//! The command line of the embedding tier.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use embed_service::{
    Config,
    config::ServeArgs,
    inspect::{self, InspectArgs},
    load::{self, LoadArgs},
    upsert::{self, UpsertArgs},
    verify::{self, VerifyArgs},
};
use scone_service::{
    grpc,
    signals::{reload_signal, shutdown_signal},
    telemetry::{self, LogArgs},
};
use tracing::info;

/// Serves the rows of an f-gram table to decoder-service.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    log: LogArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a table over gRPC until SIGTERM or Ctrl-C.
    Serve(Box<ServeArgs>),
    /// Print the facts of a table.
    Inspect(InspectArgs),
    /// Check every checksum and key of a table; exit code 1 when it is damaged.
    Verify(VerifyArgs),
    /// Replace rows of a sled table in place by those of another table.
    Upsert(UpsertArgs),
    /// Ask running servers as decoders would, and print how fast they answer.
    Load(Box<LoadArgs>),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    telemetry::init(&cli.log)?;
    match cli.command {
        Command::Serve(args) => serve(Config::from_args(*args)?),
        Command::Inspect(args) => inspect::run(&args, &mut std::io::stdout().lock()),
        Command::Verify(args) => verify::run(&args, &mut std::io::stdout().lock()),
        Command::Upsert(args) => upsert::run(&args, &mut std::io::stdout().lock()),
        Command::Load(args) => load(*args),
    }
}

fn load(args: LoadArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the threads")?;
    runtime.block_on(load::run(args, &mut std::io::stdout()))
}

fn serve(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.threads)
        .max_blocking_threads(config.read_threads)
        .enable_all()
        .build()
        .context("cannot start the threads")?;
    info!(?config, "starting");
    let result = runtime.block_on(async {
        let (shutdown, reload) = (shutdown_signal(), reload_signal());
        let listener = grpc::bind(config.listen).await?;
        anyhow::Ok(embed_service::run(config, listener, shutdown, reload).await?)
    });
    // Streams that outlived the drain, or a table still being opened, must not hold the exit.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result?;
    Ok(())
}
