//! Tokens as Parquet, for engines that read it: one row a document.
//!
//! Columns: `ids`, a list of 32-bit numbers, and `text_bytes`, how many bytes of text they stand for.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use parquet::basic::Compression;
use parquet::data_type::{Int32Type, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::reader::TOKENIZER_PROPERTY;
use super::run::TokenRun;
use super::shard::{Place, ShardHeader};
use crate::columns::ParquetFile;

const SCHEMA: &str = "message tokens {
    required group ids (LIST) { repeated group list { required int32 element; } }
    required int64 text_bytes;
}";
/// Entry of the key-value list: key, place of the next file, tokens and text bytes, as numbers.
const HEADER_PROPERTY: &str = "scone.header";
/// A row group ends with the document that brings it to this many tokens.
const GROUP_TOKENS: usize = 1 << 20;

/// Writes a run; the file is there in full or not at all.
pub(super) fn write(
    path: &Path,
    header: &ShardHeader,
    tokenizer_hash: &[u8; 32],
    run: &TokenRun,
) -> Result<()> {
    let text = header_text(header, run);
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_created_by("scone trainer".to_owned())
        .set_key_value_metadata(Some(vec![
            KeyValue::new(HEADER_PROPERTY.to_owned(), text),
            KeyValue::new(
                TOKENIZER_PROPERTY.to_owned(),
                scone_files::hex(tokenizer_hash),
            ),
        ]))
        .build();
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let ends: Vec<usize> = run.ends.iter().map(|&end| end as usize).collect();
    Ok(scone_files::write_atomic_with(path, |file| {
        let write = || -> parquet::errors::Result<()> {
            let mut writer = SerializedFileWriter::new(&mut *file, schema, Arc::new(properties))?;
            let mut first = 0;
            while first < ends.len() {
                let start = first.checked_sub(1).map_or(0, |before| ends[before]);
                let more = ends[first..].partition_point(|&end| end < start + GROUP_TOKENS);
                let last = (first + more + 1).min(ends.len());
                let mut group = writer.next_row_group()?;
                write_ids(&mut group, run, start, &ends[first..last])?;
                write_numbers(&mut group, &run.document_bytes[first..last])?;
                group.close()?;
                first = last;
            }
            writer.close()?;
            Ok(())
        };
        write().map_err(std::io::Error::other)
    })?)
}

fn write_ids<W: std::io::Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    run: &TokenRun,
    start: usize,
    ends: &[usize],
) -> parquet::errors::Result<()> {
    let Some(mut column) = group.next_column()? else {
        return Ok(());
    };
    let mut ids = Vec::new();
    run.ids
        .copy_range(start..ends.last().copied().unwrap_or(start), &mut ids);
    // The vocabulary is below 2^31, so an id is the same number with a sign.
    let ids: Vec<i32> = ids.into_iter().map(|id| id as i32).collect();
    let mut repetition = vec![1; ids.len()];
    let mut first = start;
    for &end in ends {
        repetition[first - start] = 0;
        first = end;
    }
    let definition = vec![1; ids.len()];
    column
        .typed::<Int32Type>()
        .write_batch(&ids, Some(&definition), Some(&repetition))?;
    column.close()
}

fn write_numbers<W: std::io::Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    numbers: &[u64],
) -> parquet::errors::Result<()> {
    let Some(mut column) = group.next_column()? else {
        return Ok(());
    };
    let numbers: Vec<i64> = numbers.iter().map(|&number| number as i64).collect();
    column
        .typed::<Int64Type>()
        .write_batch(&numbers, None, None)?;
    column.close()
}

fn header_text(header: &ShardHeader, run: &TokenRun) -> String {
    format!(
        "{} {} {} {} {}",
        scone_files::hex(&header.key),
        header.next.input,
        header.next.document,
        run.ids.len(),
        run.text_bytes
    )
}

/// 32 bytes of hexadecimal.
fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let digits = text.as_bytes().as_chunks::<2>();
    if digits.0.len() != bytes.len() || !digits.1.is_empty() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(digits.0) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// What a file says about itself.
pub(super) struct Facts {
    pub(super) key: [u8; 32],
    pub(super) next: Place,
    pub(super) documents: u64,
    pub(super) tokens: u64,
    pub(super) text_bytes: u64,
}

/// Reads what [`write`] wrote about a file.
///
/// # Errors
/// When it is not such a file.
pub(super) fn facts(path: &Path) -> Result<Facts> {
    let file = ParquetFile::open(path)?;
    let facts = || -> Option<Facts> {
        let mut parts = file.property(HEADER_PROPERTY)?.split(' ');
        let key = unhex(parts.next()?)?;
        let mut number = || parts.next()?.parse().ok();
        Some(Facts {
            key,
            next: Place {
                input: number()?,
                document: number()?,
            },
            documents: file.rows(),
            tokens: number()?,
            text_bytes: number()?,
        })
    };
    facts().with_context(|| format!("{} was not written by trainer tokenize", path.display()))
}
