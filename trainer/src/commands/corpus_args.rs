//! Flags about corpora that several subcommands share.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;

use crate::corpus::{DEFAULT_IDS_FIELD, DEFAULT_TEXT_FIELD, Options};

/// Where text comes from.
#[derive(Debug, Clone, clap::Args)]
pub struct InputArgs {
    /// Text: .txt (one document a file), .jsonl (one document a line), either as .zst or .gz, or
    /// .parquet (one document a row); a directory stands for every such file below it, in sorted
    /// order, one that `trainer tokenize` wrote for its tokens; * ? [] and ** are patterns. Several
    /// are separated by spaces, in the variable by colons as in $PATH.
    #[arg(long, env = "SCONE_INPUT", num_args = 1.., value_delimiter = ':', required = true, help_heading = "Input")]
    pub input: Vec<PathBuf>,
    /// Field of a .jsonl line, or column of a .parquet file, that holds the text.
    #[arg(long, env = "SCONE_TEXT_FIELD", default_value = DEFAULT_TEXT_FIELD, help_heading = "Input")]
    pub text_field: String,
    /// Column of a .parquet file without text that holds lists of token ids.
    #[arg(long, env = "SCONE_IDS_FIELD", default_value = DEFAULT_IDS_FIELD, help_heading = "Input")]
    pub ids_field: String,
}

impl InputArgs {
    /// How the inputs are read; tokens are kept in the default cache directory.
    pub fn options(&self) -> Options {
        Options {
            text_field: self.text_field.clone(),
            ids_field: self.ids_field.clone(),
            ..Options::default()
        }
    }
}

/// Where tokenised corpora are kept.
#[derive(Debug, Clone, clap::Args)]
pub struct CacheArgs {
    /// Where tokenised corpora are kept [default: $XDG_CACHE_HOME/scone or ~/.cache/scone].
    #[arg(long, env = "SCONE_CACHE_DIR", help_heading = "Input")]
    pub cache_dir: Option<PathBuf>,
    /// Tokenise anew and keep nothing.
    #[arg(long, env = "SCONE_NO_CACHE", value_parser = BoolishValueParser::new(), help_heading = "Input")]
    pub no_cache: bool,
}

impl CacheArgs {
    /// How `input` is read and where its tokens are kept.
    pub fn options_of(&self, input: &InputArgs) -> Options {
        Options {
            ids_field: input.ids_field.clone(),
            ..self.options(&input.text_field)
        }
    }

    /// The options of a corpus with its text in `text_field`.
    pub fn options(&self, text_field: &str) -> Options {
        let default = Options::default();
        let cache_dir = match (&self.cache_dir, self.no_cache) {
            (_, true) => None,
            (Some(dir), false) => Some(dir.clone()),
            (None, false) => default.cache_dir,
        };
        Options {
            text_field: text_field.to_owned(),
            cache_dir,
            ..default
        }
    }
}
