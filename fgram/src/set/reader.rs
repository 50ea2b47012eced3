//! Takes numbers off the front of a file's bytes; every error names the offset.

use super::sealed::unseal;
use super::varint;
use crate::error::{Error, Result};
use crate::keys::KeyList;
use crate::matcher::ID_LIMIT;
use crate::ngram::TokenId;

/// What is left of a file.
pub(super) struct Reader<'a> {
    file: &'a str,
    bytes: &'a [u8],
    length: usize,
}

impl<'a> Reader<'a> {
    /// Checks magic, checksum and format version, in this order, and stands behind them.
    pub(super) fn open(
        file: &'a str,
        bytes: &'a [u8],
        magic: [u8; 8],
        version: u32,
    ) -> Result<Self> {
        if !bytes.starts_with(&magic) {
            let magic = magic.escape_ascii();
            return Err(Error::format(
                file,
                format!("it does not start with {magic}"),
            ));
        }
        let body = unseal(file, bytes)?;
        let rest = body.get(magic.len()..).unwrap_or_default();
        let mut reader = Self {
            file,
            bytes: rest,
            length: body.len(),
        };
        let found = reader.u32()?;
        if found != version {
            return Err(reader.wrong(format!(
                "format version {found}, this build reads {version}"
            )));
        }
        Ok(reader)
    }

    /// An error about what was read last.
    pub(super) fn wrong(&self, problem: impl AsRef<str>) -> Error {
        let offset = self.length - self.bytes.len();
        Error::format(
            self.file,
            format!("{} (before byte {offset})", problem.as_ref()),
        )
    }

    /// Gives an error about the content the name of the file.
    pub(super) fn name_file(&self, error: Error) -> Error {
        error.in_file(self.file)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.bytes.split_first_chunk::<N>() {
            Some((array, rest)) => {
                self.bytes = rest;
                Ok(*array)
            }
            None => Err(self.wrong("cut short")),
        }
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A u32 that has to be 255 or less.
    pub(super) fn small(&mut self) -> Result<u8> {
        let value = self.u32()?;
        u8::try_from(value).map_err(|_| self.wrong(format!("{value} is above 255")))
    }

    pub(super) fn varint(&mut self) -> Result<u64> {
        varint::take(&mut self.bytes).ok_or_else(|| self.wrong("not a number"))
    }

    /// A number of records, checked against the bytes left before anything is allocated for them.
    pub(super) fn count(&mut self, least_bytes_each: usize) -> Result<usize> {
        let count = self.u64()?;
        let most = self.bytes.len() / least_bytes_each;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(self.wrong(format!(
                "{count} records cannot fit in the rest of the file"
            ))),
        }
    }

    /// Appends one f-gram (its length, then its ids) to `keys`.
    pub(super) fn key(&mut self, max_n: u8, keys: &mut KeyList) -> Result<()> {
        let n = self.varint()?;
        if !(2..=u64::from(max_n)).contains(&n) {
            return Err(self.wrong(format!("an f-gram of {n} ids, not 2 to {max_n}")));
        }
        for _ in 0..n {
            let id = self.id()?;
            keys.push_id(id);
        }
        keys.end_key().map_err(|error| self.name_file(error))
    }

    fn id(&mut self) -> Result<TokenId> {
        let id = self.varint()?;
        let fits = u32::try_from(id).ok().filter(|&id| id < ID_LIMIT);
        fits.ok_or_else(|| self.wrong(format!("token id {id} is not below {ID_LIMIT}")))
    }

    /// Nothing may be left.
    pub(super) fn end(&self) -> Result<()> {
        match self.bytes.len() {
            0 => Ok(()),
            left => Err(self.wrong(format!("{left} bytes left over"))),
        }
    }
}

/// Appends one f-gram as [`Reader::key`] reads it.
pub(super) fn put_key(ids: &[TokenId], out: &mut Vec<u8>) {
    varint::put(ids.len() as u64, out);
    ids.iter().for_each(|&id| varint::put(u64::from(id), out));
}
