//! `trainer train`.

/// Flags of `trainer train`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs `trainer train`.
///
/// # Errors
/// Always, until the command is written.
pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("`trainer train` is not written yet")
}
