//! The command line of the embedding tier.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use embed_service::{
    Config,
    config::ServeArgs,
    fetch::{self, FetchArgs},
    inspect::{self, InspectArgs},
    load::{self, LoadArgs},
    upsert::{self, UpsertArgs},
    verify::{self, VerifyArgs},
    watch,
};
use scone_service::{
    grpc,
    signals::{reload_signal, shutdown_signal},
    started,
    telemetry::{self, LogArgs},
};
use tracing::info;

/// Serves the rows of an f-gram table to decoder-service.
#[derive(Parser)]
#[command(version = started::version(), about)]
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
    /// Copy a table from where it was published to the disk it is served from, checked.
    Fetch(FetchArgs),
    /// Replace rows of a sled table in place by those of another table.
    Upsert(UpsertArgs),
    /// Ask running servers as decoders would, and print how fast they answer.
    Load(Box<LoadArgs>),
}

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    started::record(&Cli::command(), &matches);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
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
        Command::Fetch(args) => fetch(args),
        Command::Upsert(args) => upsert::run(&args, &mut std::io::stdout().lock()),
        Command::Load(args) => load(*args),
    }
}

fn load(args: LoadArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the threads")?;
    runtime.block_on(load::run(args, &mut std::io::stdout()))
}

/// Ends at SIGTERM, also as the first process of a container, which no signal ends by default.
fn fetch(args: FetchArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the threads")?;
    let goes_on = args.every.is_some();
    let result = runtime.block_on(async {
        let work = tokio::task::spawn_blocking(move || fetch::run(&args, &mut std::io::stdout()));
        tokio::select! {
            done = work => done.context("the fetch was lost")?,
            () = shutdown_signal() => {
                ensure!(goes_on, "interrupted; the same command goes on where this one was");
                Ok(())
            }
        }
    });
    // What was copied is there for the next run.
    runtime.shutdown_timeout(Duration::ZERO);
    result
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
        if let Some(every) = config.watch_table {
            let paths = config
                .tables
                .iter()
                .map(|table| table.dir.clone())
                .collect();
            let folder = config.folder.clone();
            tokio::spawn(watch::tables(paths, folder, every, Arc::clone(&reload)));
        }
        let listener = grpc::bind(config.listen).await?;
        anyhow::Ok(embed_service::run(config, listener, shutdown, reload).await?)
    });
    // Streams that outlived the drain, or a table still being opened, must not hold the exit.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result?;
    Ok(())
}
