//! `trainer evaluate`.

/// Flags of `trainer evaluate`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs `trainer evaluate`.
///
/// # Errors
/// Always, until the command is written.
pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("`trainer evaluate` is not written yet")
}
