//! Columns of Parquet files, read as streams of rows.
//!
//! Of a column that is read, one page and a few rows are in memory at a time.

mod rows;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use parquet::basic::Type as PhysicalType;
use parquet::column::reader::ColumnReader;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;

pub(crate) use rows::{Lists, Numbers, Texts};

/// An open file.
#[derive(Clone)]
pub(crate) struct ParquetFile {
    reader: Arc<SerializedFileReader<File>>,
    path: PathBuf,
}

/// A column of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Column {
    index: usize,
    physical: PhysicalType,
    /// Definition level of a value that is there.
    max_definition: i16,
    /// The least definition level of an element of a list, be it null.
    element_definition: i16,
}

impl ParquetFile {
    /// Opens a file: its schema and the places of its columns are read.
    ///
    /// # Errors
    /// When it cannot be read or is not Parquet; `path` is named.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let open = || -> Result<SerializedFileReader<File>> {
            Ok(SerializedFileReader::new(File::open(path)?)?)
        };
        let reader = open().with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self {
            reader: Arc::new(reader),
            path: path.to_owned(),
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn metadata(&self) -> &ParquetMetaData {
        self.reader.metadata()
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> u64 {
        u64::try_from(self.metadata().file_metadata().num_rows()).unwrap_or(0)
    }

    /// A value of the file's own key-value list.
    pub(crate) fn property(&self, key: &str) -> Option<&str> {
        let list = self.metadata().file_metadata().key_value_metadata()?;
        let pair = list.iter().find(|pair| pair.key == key)?;
        pair.value.as_deref()
    }

    /// The column of texts called `name`.
    pub(crate) fn texts(&self, name: &str) -> Option<Column> {
        self.find(name, 0, &[PhysicalType::BYTE_ARRAY])
    }

    /// The column of lists of whole numbers called `name`.
    pub(crate) fn lists(&self, name: &str) -> Option<Column> {
        self.find(name, 1, &[PhysicalType::INT32, PhysicalType::INT64])
    }

    /// The column of whole numbers called `name`.
    pub(crate) fn numbers(&self, name: &str) -> Option<Column> {
        self.find(name, 0, &[PhysicalType::INT32, PhysicalType::INT64])
    }

    fn find(&self, name: &str, lists: i16, types: &[PhysicalType]) -> Option<Column> {
        let schema = self.metadata().file_metadata().schema_descr();
        let wanted = |column: &ColumnDescriptor| {
            let parts = column.path().parts();
            parts.first().is_some_and(|part| part == name)
                && (lists > 0 || parts.len() == 1)
                && column.max_rep_level() == lists
                && types.contains(&column.physical_type())
        };
        let index = (0..schema.num_columns()).find(|&index| wanted(&schema.column(index)))?;
        let column = schema.column(index);
        Some(Column {
            index,
            physical: column.physical_type(),
            max_definition: column.max_def_level(),
            element_definition: column.max_def_level()
                - i16::from(column.self_type().is_optional()),
        })
    }

    /// The names of all columns, for errors.
    pub(crate) fn column_names(&self) -> String {
        let fields = self.metadata().file_metadata().schema().get_fields();
        let names: Vec<&str> = fields.iter().map(|field| field.name()).collect();
        names.join(", ")
    }

    /// A reader of one column of one row group; `None` behind the last.
    fn column(&self, group: usize, column: usize) -> Result<Option<ColumnReader>> {
        if group >= self.reader.num_row_groups() {
            return Ok(None);
        }
        let open = || -> Result<ColumnReader> {
            Ok(self
                .reader
                .get_row_group(group)?
                .get_column_reader(column)?)
        };
        let reader = open().with_context(|| format!("cannot read {}", self.path.display()))?;
        Ok(Some(reader))
    }
}
