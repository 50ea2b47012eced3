//! `trainer precompute`.

/// Flags of `trainer precompute`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs `trainer precompute`.
///
/// # Errors
/// Always, until the command is written.
pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("`trainer precompute` is not written yet")
}
