//! Flags that all benchmarks share.

use std::path::PathBuf;

/// Where data lives, and how often everything is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct CommonArgs {
    /// Where stores and tables are built; they stay for later runs, until this folder is removed
    /// [default: in the target folder].
    #[arg(long, env = "SCONE_BENCH_DIR", value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Rounds; each measures every subject once, and the median counts.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,

    /// What `cargo bench` adds: without it data is tiny, to see that the benchmark works.
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl CommonArgs {
    /// `full` under `cargo bench`, `tiny` elsewhere.
    pub fn size<T>(&self, full: T, tiny: T) -> T {
        if self.bench { full } else { tiny }
    }

    /// Rounds to measure.
    pub fn rounds(&self) -> u32 {
        self.size(self.rounds, 1)
    }

    /// The folder of one benchmark, empty without `--bench`; `target_tmp` is cargo's folder for the data of benchmarks,
    /// `env!("CARGO_TARGET_TMPDIR")`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self, target_tmp: &str, bench: &str) -> anyhow::Result<PathBuf> {
        let parent = self.dir.clone();
        let parent = parent.unwrap_or_else(|| PathBuf::from(target_tmp).join("benchmarks"));
        let folder = parent.join(self.size("full", "tiny")).join(bench);
        if !self.bench && folder.exists() {
            // Cheap to make, and possibly of an older format.
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }
}

/// The shape of a store: how many rows of how many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Number of rows.
    pub rows: usize,
    /// Bytes of one encoded row, a multiple of 4.
    pub row_bytes: usize,
}

impl Shape {
    /// `rows` rows of `row_bytes` bytes, a multiple of 4.
    pub fn new(rows: usize, row_bytes: usize) -> Self {
        Self { rows, row_bytes }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.rows, self.row_bytes)
    }
}

impl std::str::FromStr for Shape {
    type Err = String;

    /// Reads `ROWSxBYTES`, as in `1000000x2048`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not ROWSxBYTES, such as 1000000x2048");
        let (rows, row_bytes) = text.split_once('x').ok_or_else(wrong)?;
        let shape = Self {
            rows: rows.parse().map_err(|_| wrong())?,
            row_bytes: row_bytes.parse().map_err(|_| wrong())?,
        };
        if shape.rows == 0 || shape.row_bytes == 0 || !shape.row_bytes.is_multiple_of(4) {
            return Err(format!("{text}: rows are 1 or more, of 4, 8, 12, … bytes"));
        }
        Ok(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read_as_they_are_shown() {
        let shape: Shape = "1000x2048".parse().expect("a shape");
        assert_eq!((shape.rows, shape.row_bytes), (1000, 2048));
        assert_eq!(shape.to_string(), "1000x2048");
        for wrong in ["", "10", "x", "0x8", "8x0", "8x7", "-1x4"] {
            assert!(wrong.parse::<Shape>().is_err(), "{wrong}");
        }
    }
}
