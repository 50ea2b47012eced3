//! The header of a GGUF file: metadata, and where the tensors are.
//!
//! A reader of our own, as candle's believes the file: an alignment of 0 ends the process, sizes are
//! multiplied without a check, and lists (the vocabulary) take many times their size in memory. Here
//! nothing is allocated that is not in the file, and lists are passed over.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read};

/// Longest text that is kept.
const MAX_TEXT: u64 = 1 << 16;
/// Most dimensions of a tensor.
const MAX_DIMS: u32 = 4;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Number(f64),
    Flag(bool),
    Text(String),
    /// Passed over: a list, or a long text.
    Long,
}

/// A tensor, as the header describes it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorHeader {
    /// Sizes, the outermost first.
    pub(super) shape: Vec<usize>,
    /// ggml's number of the type.
    pub(super) kind: u32,
    /// First byte, from where the tensors begin.
    pub(super) offset: u64,
}

/// A whole header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: HashMap<String, Value>,
    pub(super) tensors: BTreeMap<String, TensorHeader>,
    /// Where the tensors begin.
    pub(super) data_start: u64,
}

impl Header {
    /// Reads the header of a file of `len` bytes.
    pub(super) fn read(file: &File, len: u64) -> io::Result<Self> {
        let mut reader = Reader {
            inner: BufReader::new(file),
            at: 0,
            len,
        };
        if reader.bytes::<4>()? != *b"GGUF" {
            return Err(wrong("it does not begin with GGUF"));
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            return Err(wrong(format!(
                "version {version} is not supported, use 2 or 3"
            )));
        }
        let (tensors, values) = (reader.u64()?, reader.u64()?);
        let metadata = reader.metadata(values)?;
        let tensors = reader.tensors(tensors)?;
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Number(n)) if *n >= 1.0 && *n <= 65_536.0 => *n as u64,
            Some(other) => return Err(wrong(format!("general.alignment is {other:?}"))),
        };
        Ok(Self {
            metadata,
            tensors,
            data_start: reader.at.next_multiple_of(alignment),
        })
    }
}

/// The number with the fewest digits that is this f32: 1e-5, not 9.99999974e-6.
fn as_written(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

fn wrong(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// A file being read from its beginning.
struct Reader<'a> {
    inner: BufReader<&'a File>,
    at: u64,
    len: u64,
}

impl Reader<'_> {
    /// Counts bytes that are about to be read, if the file has them.
    fn take(&mut self, bytes: u64) -> io::Result<()> {
        match self.at.checked_add(bytes) {
            Some(end) if end <= self.len => {
                self.at = end;
                Ok(())
            }
            _ => Err(wrong(format!(
                "its header asks for {bytes} bytes at {} of a file of {}",
                self.at, self.len
            ))),
        }
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        self.take(N as u64)?;
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.take(bytes)?;
        // Below the file's length, which is an i64 to the system.
        self.inner.seek_relative(bytes as i64)
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// `None` for a text that is too long to be kept.
    fn text(&mut self) -> io::Result<Option<String>> {
        let len = self.u64()?;
        if len > MAX_TEXT {
            self.skip(len)?;
            return Ok(None);
        }
        self.take(len)?;
        let mut bytes = vec![0; len as usize];
        self.inner.read_exact(&mut bytes)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn name(&mut self) -> io::Result<String> {
        self.text()?.ok_or_else(|| wrong("a name is too long"))
    }

    fn metadata(&mut self, count: u64) -> io::Result<HashMap<String, Value>> {
        let mut metadata = HashMap::new();
        for _ in 0..count {
            let name = self.name()?;
            let kind = self.u32()?;
            metadata.insert(name, self.value(kind)?);
        }
        Ok(metadata)
    }

    fn value(&mut self, kind: u32) -> io::Result<Value> {
        Ok(match kind {
            0 => Value::Number(f64::from(self.bytes::<1>()?[0])),
            1 => Value::Number(f64::from(i8::from_le_bytes(self.bytes()?))),
            2 => Value::Number(f64::from(u16::from_le_bytes(self.bytes()?))),
            3 => Value::Number(f64::from(i16::from_le_bytes(self.bytes()?))),
            4 => Value::Number(f64::from(self.u32()?)),
            5 => Value::Number(f64::from(i32::from_le_bytes(self.bytes()?))),
            6 => Value::Number(as_written(f32::from_le_bytes(self.bytes()?))),
            7 => Value::Flag(self.bytes::<1>()?[0] != 0),
            8 => self.text()?.map_or(Value::Long, Value::Text),
            9 => {
                self.skip_list()?;
                Value::Long
            }
            10 => Value::Number(self.u64()? as f64),
            11 => Value::Number(i64::from_le_bytes(self.bytes()?) as f64),
            12 => Value::Number(f64::from_le_bytes(self.bytes()?)),
            other => return Err(wrong(format!("its header has a value of type {other}"))),
        })
    }

    fn skip_list(&mut self) -> io::Result<()> {
        let (kind, count) = (self.u32()?, self.u64()?);
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for _ in 0..count {
                    let len = self.u64()?;
                    self.skip(len)?;
                }
                return Ok(());
            }
            other => return Err(wrong(format!("its header has a list of type {other}"))),
        };
        self.skip(count.saturating_mul(size))
    }

    fn tensors(&mut self, count: u64) -> io::Result<BTreeMap<String, TensorHeader>> {
        let mut tensors = BTreeMap::new();
        for _ in 0..count {
            let name = self.name()?;
            let dims = self.u32()?;
            if dims > MAX_DIMS {
                return Err(wrong(format!("tensor `{name}` has {dims} dimensions")));
            }
            let mut shape = Vec::new();
            for _ in 0..dims {
                let size = usize::try_from(self.u64()?);
                shape.push(size.map_err(|_| wrong(format!("tensor `{name}` is too large")))?);
            }
            shape.reverse();
            let tensor = TensorHeader {
                shape,
                kind: self.u32()?,
                offset: self.u64()?,
            };
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(wrong(format!("tensor `{name}` is there twice")));
            }
        }
        Ok(tensors)
    }
}
