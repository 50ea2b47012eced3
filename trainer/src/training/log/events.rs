//! Scalars for TensorBoard: an event file of framed, checksummed protocol buffers.
//!
//! A record is the length of its data (u64), the masked CRC-32C of those 8 bytes, the data, and the
//! data's masked CRC-32C, all little-endian. The data is an `Event`: `wall_time` (1, double), `step`
//! (2, int64), and `file_version` (3, string) in the first record or a `summary` (5) in others, with
//! values (1) of a `tag` (1, string) and a `simple_value` (2, float).

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::crc32c::masked;

/// Name of the file in its folder; TensorBoard looks for `tfevents` in it.
pub(super) const NAME: &str = "events.out.tfevents.0000000000.scone";

/// Tags of the keys of an entry.
const TAGS: [(&str, &str); 9] = [
    ("loss", "train/loss"),
    ("grad_norm", "train/grad_norm"),
    ("lr", "train/lr"),
    ("tokens_per_s", "speed/tokens_per_s"),
    ("peak_share", "speed/peak_share"),
    ("memory_bytes", "memory/bytes"),
    ("valid_nats_per_token", "valid/nats_per_token"),
    ("valid_bits_per_byte", "valid/bits_per_byte"),
    ("valid_matched", "valid/matched"),
];

/// Appends to the event file of a run.
#[derive(Debug)]
pub(super) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Opens the file in `dir` for a run that goes on after `step`.
    pub(super) fn open(dir: &Path, step: u64) -> Result<Self> {
        let path = dir.join(NAME);
        let file = Self::cut(dir, &path, step)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, file })
    }

    /// Drops the events after `step`.
    pub(super) fn rewind(&mut self, step: u64) -> Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new(".")).to_owned();
        *self = Self::open(&dir, step)?;
        Ok(())
    }

    /// Adds the numbers of an entry.
    pub(super) fn write(&mut self, entry: &Value) -> Result<()> {
        let step = entry.get("step").and_then(Value::as_u64).unwrap_or(0);
        let values = scalars(entry);
        if values.is_empty() {
            return Ok(());
        }
        let record = record(&event(step, &values));
        self.file
            .write_all(&record)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn cut(dir: &Path, path: &Path, step: u64) -> Result<File> {
        fs::create_dir_all(dir)?;
        let old = match fs::read(path) {
            Ok(old) => old,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let mut kept = record(&first_event());
        // Behind the first record, which says what the file is.
        for data in Records(&old).skip(1) {
            let at = step_of(data).unwrap_or(0);
            if step > 0 && at <= step {
                kept.extend(record(data));
            }
        }
        // The first record says when the file was begun: kept where nothing else changes.
        let unchanged = old.len() == kept.len() && step > 0;
        if !unchanged {
            scone_files::write_atomic(path, &kept)?;
        }
        Ok(OpenOptions::new().create(true).append(true).open(path)?)
    }
}

/// Tags and numbers of an entry.
fn scalars(entry: &Value) -> Vec<(String, f32)> {
    let number = |value: &Value| value.as_f64().map(|x| x as f32);
    let fixed = TAGS.iter().filter_map(|(key, tag)| {
        let value = entry.get(key).and_then(number)?;
        Some(((*tag).to_owned(), value))
    });
    let texts = entry.get("valid").and_then(Value::as_object);
    let by_text = texts.into_iter().flatten();
    let by_text = by_text.filter_map(|(name, value)| {
        let value = number(value)?;
        Some((format!("valid/{name}"), value))
    });
    fixed.chain(by_text).collect()
}

fn wall_time() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

fn first_event() -> Vec<u8> {
    let mut data = Vec::new();
    fixed64(&mut data, 1, wall_time());
    bytes(&mut data, 3, b"brain.Event:2");
    data
}

fn event(step: u64, values: &[(String, f32)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut one = Vec::new();
        bytes(&mut one, 1, tag.as_bytes());
        one.push(2 << 3 | 5);
        one.extend(value.to_le_bytes());
        bytes(&mut summary, 1, &one);
    }
    let mut data = Vec::new();
    fixed64(&mut data, 1, wall_time());
    data.push(2 << 3);
    varint(&mut data, step);
    bytes(&mut data, 5, &summary);
    data
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked(data).to_le_bytes());
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

fn fixed64(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(field << 3 | 1);
    out.extend(value.to_le_bytes());
}

/// The data of whole records; what a kill left half written at the end is not there.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<8>()?;
        let (length_crc, rest) = rest.split_first_chunk::<4>()?;
        let size = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let data = rest.get(..size)?;
        let (data_crc, rest) = rest[size..].split_first_chunk::<4>()?;
        let sound = masked(length) == u32::from_le_bytes(*length_crc)
            && masked(data) == u32::from_le_bytes(*data_crc);
        self.0 = rest;
        sound.then_some(data)
    }
}

/// The fields of a message: number, and the bytes or the number in it.
struct Fields<'a>(&'a [u8]);

enum Field<'a> {
    Number(u64),
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "only steps are read but in tests")
    )]
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Field<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => Field::Bytes(self.take(8)?),
            2 => {
                let size = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(size)?)
            }
            5 => Field::Bytes(self.take(4)?),
            _ => return None,
        };
        Some((key >> 3, field))
    }
}

fn step_of(data: &[u8]) -> Option<u64> {
    Fields(data).find_map(|(number, field)| match (number, field) {
        (2, Field::Number(step)) => Some(step),
        _ => None,
    })
}

/// All scalars of a file: step, tag, value.
#[cfg(test)]
pub(super) fn read(path: &Path) -> Result<Vec<(u64, String, f32)>> {
    let file = fs::read(path)?;
    let mut found = Vec::new();
    for data in Records(&file) {
        let step = step_of(data).unwrap_or(0);
        for (number, field) in Fields(data) {
            let (5, Field::Bytes(summary)) = (number, field) else {
                continue;
            };
            for (_, value) in Fields(summary) {
                let Field::Bytes(value) = value else { continue };
                let (mut tag, mut scalar) = (String::new(), f32::NAN);
                for (number, field) in Fields(value) {
                    match (number, field) {
                        (1, Field::Bytes(text)) => tag = String::from_utf8(text.to_vec())?,
                        (2, Field::Bytes(four)) => scalar = f32::from_le_bytes(four.try_into()?),
                        _ => {}
                    }
                }
                found.push((step, tag, scalar));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn records_end_at_the_first_damage() {
        let mut file = record(&first_event());
        let second = file.len();
        file.extend(record(&event(7, &[("a".to_owned(), 1.0)])));
        let third = file.len();
        file.extend(record(&event(300, &[("b".to_owned(), 2.0)])));
        let steps = |file: &[u8]| -> Vec<Option<u64>> { Records(file).map(step_of).collect() };
        assert_eq!(steps(&file), [None, Some(7), Some(300)]);
        assert_eq!(steps(&file[..file.len() - 1]), [None, Some(7)]);
        for at in second..third {
            let mut damaged = file.clone();
            damaged[at] ^= 0x10;
            assert_eq!(steps(&damaged), [None], "{at}");
        }
    }
}
