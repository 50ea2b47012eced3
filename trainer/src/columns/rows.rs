//! Readers of a column, row by row.

use std::collections::VecDeque;

use anyhow::{Context as _, Result, anyhow, bail};
use parquet::basic::Type as PhysicalType;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};

use super::{Column, ParquetFile};

/// Rows read at a time.
const ROWS: usize = 32;

/// A column whose row groups are read one after another.
struct Groups {
    file: ParquetFile,
    column: Column,
    next: usize,
    /// Rows handed out so far.
    row: u64,
}

/// What was read of a column: its values, and by levels which rows they belong to.
struct Levels<V> {
    values: Vec<V>,
    definition: Vec<i16>,
    repetition: Vec<i16>,
}

impl<V> Levels<V> {
    fn read<T: DataType<T = V>>(reader: &mut ColumnReaderImpl<T>) -> Result<Self> {
        let mut levels = Self {
            values: Vec::new(),
            definition: Vec::new(),
            repetition: Vec::new(),
        };
        let (rows, ..) = reader.read_records(
            ROWS,
            Some(&mut levels.definition),
            Some(&mut levels.repetition),
            &mut levels.values,
        )?;
        // A column that is always there has no levels.
        if levels.definition.is_empty() {
            levels.definition.resize(rows, i16::MAX);
        }
        if levels.repetition.is_empty() {
            levels.repetition.resize(levels.definition.len(), 0);
        }
        Ok(levels)
    }
}

impl Groups {
    fn new(file: &ParquetFile, column: Column) -> Self {
        Self {
            file: file.clone(),
            column,
            next: 0,
            row: 0,
        }
    }

    fn open(&mut self) -> Result<Option<ColumnReader>> {
        let reader = self.file.column(self.next, self.column.index)?;
        self.next += 1;
        Ok(reader)
    }

    /// Puts what went wrong into the words of whoever reads the file.
    fn at(&self, problem: impl std::fmt::Display) -> anyhow::Error {
        anyhow!(
            "{}, row {}: {problem}",
            self.file.path.display(),
            self.row + 1
        )
    }
}

/// Reads the texts of a column.
pub(crate) struct Texts {
    groups: Groups,
    reader: Option<ColumnReaderImpl<ByteArrayType>>,
    read: VecDeque<Option<ByteArray>>,
}

impl Texts {
    pub(crate) fn new(file: &ParquetFile, column: Column) -> Self {
        Self {
            groups: Groups::new(file, column),
            reader: None,
            read: VecDeque::new(),
        }
    }

    /// The text of the next row, empty where there is none; `None` behind the last.
    pub(crate) fn next(&mut self) -> Result<Option<String>> {
        while self.read.is_empty() {
            let Some(reader) = &mut self.reader else {
                match self.groups.open()? {
                    Some(reader) => self.reader = Some(get_typed_column_reader(reader)),
                    None => return Ok(None),
                }
                continue;
            };
            let levels = Levels::read(reader).map_err(|error| self.groups.at(error))?;
            if levels.definition.is_empty() {
                self.reader = None;
            }
            let mut values = levels.values.into_iter();
            let there = self.groups.column.max_definition;
            for level in levels.definition {
                let value = if level >= there { values.next() } else { None };
                self.read.push_back(value);
            }
        }
        let value = self.read.pop_front().flatten();
        let text = match &value {
            None => String::new(),
            Some(bytes) => match std::str::from_utf8(bytes.data()) {
                Ok(text) => text.to_owned(),
                Err(_) => return Err(self.groups.at("not UTF-8 text")),
            },
        };
        self.groups.row += 1;
        Ok(Some(text))
    }
}

/// A reader of whole numbers of either width.
enum IntReader {
    Narrow(ColumnReaderImpl<Int32Type>),
    Wide(ColumnReaderImpl<Int64Type>),
}

/// Reads the lists of a column.
pub(crate) struct Lists {
    groups: Groups,
    reader: Option<IntReader>,
    read: VecDeque<Vec<i64>>,
}

impl Lists {
    pub(crate) fn new(file: &ParquetFile, column: Column) -> Self {
        Self {
            groups: Groups::new(file, column),
            reader: None,
            read: VecDeque::new(),
        }
    }

    /// The list of the next row, empty where there is none; `None` behind the last.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<i64>>> {
        while self.read.is_empty() {
            if self.reader.is_none() {
                self.reader = match self.groups.open()? {
                    None => return Ok(None),
                    Some(reader) => Some(match self.groups.column.physical {
                        PhysicalType::INT32 => IntReader::Narrow(get_typed_column_reader(reader)),
                        _ => IntReader::Wide(get_typed_column_reader(reader)),
                    }),
                };
            }
            let levels = match &mut self.reader {
                None => continue,
                Some(IntReader::Narrow(reader)) => Levels::read(reader).map(widened),
                Some(IntReader::Wide(reader)) => Levels::read(reader),
            };
            let levels = levels.map_err(|error| self.groups.at(error))?;
            if levels.definition.is_empty() {
                self.reader = None;
            }
            self.take(levels)?;
        }
        self.groups.row += 1;
        Ok(self.read.pop_front())
    }

    fn take(&mut self, levels: Levels<i64>) -> Result<()> {
        let column = self.groups.column;
        let mut values = levels.values.into_iter();
        for (definition, repetition) in levels.definition.into_iter().zip(levels.repetition) {
            if repetition == 0 {
                self.read.push_back(Vec::new());
            }
            if definition >= column.max_definition {
                let list = self.read.back_mut().zip(values.next());
                let (list, value) = list.context("a list without a beginning")?;
                list.push(value);
            } else if definition >= column.element_definition {
                bail!(self.groups.at("a list with a null in it"));
            }
        }
        Ok(())
    }
}

fn widened(levels: Levels<i32>) -> Levels<i64> {
    Levels {
        values: levels.values.into_iter().map(i64::from).collect(),
        definition: levels.definition,
        repetition: levels.repetition,
    }
}

/// Reads the numbers of a column.
pub(crate) struct Numbers(Lists);

impl Numbers {
    pub(crate) fn new(file: &ParquetFile, column: Column) -> Self {
        Self(Lists::new(file, column))
    }

    /// The number of the next row; `None` behind the last.
    pub(crate) fn next(&mut self) -> Result<Option<i64>> {
        match self.0.next()? {
            None => Ok(None),
            Some(numbers) => match numbers[..] {
                [number] => Ok(Some(number)),
                _ => {
                    self.0.groups.row -= 1;
                    Err(self.0.groups.at("no number"))
                }
            },
        }
    }
}
