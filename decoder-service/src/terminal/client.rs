//! `decoder-service client`: one generation by a server.

use std::io::Write;

use clap::Args;

use super::{
    Output, Summary, TextArgs,
    server::{Server, ServerArgs},
};
use crate::error::Error;

/// The flags of `decoder-service client`.
#[derive(Args, Clone, Debug)]
pub struct ClientArgs {
    /// What to continue, and how.
    #[command(flatten)]
    pub text: TextArgs,

    /// Which server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Has a server generate one text: streams it to `out`, then writes a summary line to `summary`.
///
/// # Errors
/// When the server cannot be reached, refuses, or ends early.
pub async fn run(
    args: &ClientArgs,
    out: &mut (dyn Write + Send),
    summary: &mut (dyn Write + Send),
) -> Result<(), Error> {
    let mut server = Server::reach(&args.server).await?;
    let seed = args.text.sampling.seed();
    let draft = args.text.draft(seed);
    let mut generation = server.generate(&args.server, draft).await?;
    let mut output = Output::new(args.text.format(), out, summary);
    while let Some(delta) = generation.next().await? {
        output.delta(delta)?;
    }
    let mode = server.embed_mode;
    output.finish(&Summary { seed, mode })
}
