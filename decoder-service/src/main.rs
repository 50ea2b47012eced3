//! The decoder-service program: flags, logs, threads; the rest is the library.

use std::time::Duration;

use anyhow::Context as _;
use clap::{
    ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, parser::ValueSource,
};
use decoder_service::{
    config::{ModelArgs, ServeArgs},
    generate::{self, GenerateArgs},
    terminal::{
        chat::{self, ChatArgs},
        client::{self, ClientArgs},
    },
};
use scone_service::{
    grpc,
    signals::shutdown_signal,
    started,
    telemetry::{self, LogArgs},
};

/// Generates text with a language model whose input embeddings come from an f-gram table.
#[derive(Parser)]
#[command(version = started::version())]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Serve generation over gRPC and HTTP, with continuous batching.
    Serve(Box<ServeArgs>),
    /// Continue one text in this terminal, without a server.
    Generate(Box<GenerateArgs>),
    /// Have a server continue one text.
    Client(ClientArgs),
    /// Converse with a server's model, by its chat template.
    Chat(ChatArgs),
}

fn main() -> anyhow::Result<()> {
    let matches = Cli::command().get_matches();
    started::record(&Cli::command(), &matches);
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if !matches!(cli.command, Command::Serve(_)) && !log_was_given(&matches) {
        // The text is what matters in a terminal.
        cli.log.log = "warn".to_owned();
    }
    telemetry::init(&cli.log)?;
    match cli.command {
        Command::Serve(args) => {
            let config = args.check()?;
            let runtime = threads(&args.model)?;
            let served = runtime.block_on(async {
                let shutdown = shutdown_signal();
                let listener = grpc::bind(args.listen).await?;
                decoder_service::run(config, listener, shutdown).await
            });
            // A model still being loaded must not hold the exit.
            runtime.shutdown_timeout(Duration::from_millis(100));
            served?;
        }
        Command::Generate(args) => {
            let (mut out, mut summary) = (std::io::stdout(), std::io::stderr());
            threads(&args.model)?.block_on(generate::run(&args, &mut out, &mut summary))?;
        }
        Command::Client(args) => {
            let (mut out, mut summary) = (std::io::stdout(), std::io::stderr());
            network()?.block_on(client::run(&args, &mut out, &mut summary))?;
        }
        Command::Chat(args) => {
            let mut input = std::io::BufReader::new(std::io::stdin());
            let (mut out, mut summary) = (std::io::stdout(), std::io::stderr());
            network()?.block_on(chat::run(&args, &mut input, &mut out, &mut summary))?;
        }
    }
    Ok(())
}

/// A runtime for a client, which computes nothing.
fn network() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the network")
}

fn log_was_given(matches: &ArgMatches) -> bool {
    let given = |m: &ArgMatches| m.value_source("log") != Some(ValueSource::DefaultValue);
    matches
        .subcommand()
        .is_some_and(|(_, matches)| given(matches))
}

/// The compute threads, shared by all of the process, and the runtime of the network threads.
fn threads(args: &ModelArgs) -> anyhow::Result<tokio::runtime::Runtime> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads)
        .build_global()
        .context("cannot start the compute threads")?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(args.io_threads)
        .enable_all()
        .build()
        .context("cannot start the network threads")
}
