//! The bytes of a set file (`docs/formats.md`, "fgrams.bin").

use std::cmp::Ordering;

use super::{FgramSet, SetHeader, end_of, slices};
use crate::error::{Error, Result};
use crate::files::{HASH_BYTES, seal, unseal};
use crate::matcher::{ID_LIMIT, check_max_n};
use crate::ngram::TokenId;
use crate::varint;

const MAGIC: [u8; 8] = *b"SCONEFGS";
const VERSION: u32 = 1;

/// Fewest bytes an f-gram takes: length, two ids, two counts, one byte each.
const LEAST_BYTES: usize = 5;

pub(super) fn encode(set: &FgramSet) -> Vec<u8> {
    let mut out = Vec::with_capacity(96 + 12 * set.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&set.header.vocab_size.to_le_bytes());
    out.extend_from_slice(&u32::from(set.header.max_n).to_le_bytes());
    out.extend_from_slice(&set.header.min_count.to_le_bytes());
    out.extend_from_slice(&set.header.tokenizer_hash);
    let totals = set.count_by_length();
    for total in &totals[2..=usize::from(set.header.max_n)] {
        out.extend_from_slice(&total.to_le_bytes());
    }
    out.extend_from_slice(&(set.len() as u64).to_le_bytes());
    for fgram in set.iter() {
        varint::put(fgram.ids.len() as u64, &mut out);
        fgram
            .ids
            .iter()
            .for_each(|&id| varint::put(u64::from(id), &mut out));
        varint::put(fgram.count, &mut out);
        varint::put(fgram.match_count, &mut out);
    }
    seal(&mut out);
    out
}

pub(super) fn decode(file: &str, bytes: &[u8]) -> Result<FgramSet> {
    let problem = |problem: String| Error::format(file, problem);
    if !bytes.starts_with(&MAGIC) {
        return Err(problem(
            "not an f-gram set: it does not start with SCONEFGS".into(),
        ));
    }
    let body = unseal(file, bytes)?;
    let mut reader = Reader {
        bytes: &body[MAGIC.len()..],
        length: body.len(),
    };
    read_set(&mut reader).map_err(|error| match error {
        // Which file it was matters more than which argument.
        Error::InvalidArgument {
            field,
            problem: text,
        } => problem(format!("{field}: {text}")),
        Error::InvalidFgram { .. } => problem(error.to_string()),
        other => other,
    })
}

fn read_set(reader: &mut Reader<'_>) -> Result<FgramSet> {
    let version = reader.u32()?;
    if version != VERSION {
        let problem = format!("{version}, this build reads {VERSION}");
        return Err(Error::argument("format version", problem));
    }
    let header = read_header(reader)?;
    let lengths = 2..=usize::from(header.max_n);
    let totals = lengths
        .clone()
        .map(|_| reader.u64())
        .collect::<Result<Vec<u64>>>()?;
    let len = reader.length()?;
    let mut ids = Vec::with_capacity(2 * len);
    let mut ends = Vec::with_capacity(len);
    let mut counts = Vec::with_capacity(len);
    let mut match_counts = Vec::with_capacity(len);
    for _ in 0..len {
        let n = reader.varint()?;
        if !(2..=u64::from(header.max_n)).contains(&n) {
            return Err(reader.wrong(format!("an f-gram of {n} ids, not 2 to {}", header.max_n)));
        }
        for _ in 0..n {
            ids.push(reader.id()?);
        }
        ends.push(end_of(&ids)?);
        counts.push(reader.varint()?);
        match_counts.push(reader.varint()?);
    }
    if !reader.bytes.is_empty() {
        return Err(reader.wrong(format!("{} bytes left over", reader.bytes.len())));
    }
    check_rank_order(&ids, &ends, &counts)?;
    let set = FgramSet::from_ranked(header, ids, ends, counts, match_counts)?;
    if set.count_by_length()[lengths] != totals {
        return Err(reader.wrong("totals by length do not add up".into()));
    }
    Ok(set)
}

fn read_header(reader: &mut Reader<'_>) -> Result<SetHeader> {
    let vocab_size = reader.u32()?;
    let max_n = reader.u32()?;
    let max_n = u8::try_from(max_n)
        .map_err(|_| Error::argument("max_n", format!("{max_n} is too large")))?;
    check_max_n(max_n)?;
    let min_count = reader.u64()?;
    let tokenizer_hash = reader.array::<HASH_BYTES>()?;
    Ok(SetHeader {
        vocab_size,
        max_n,
        tokenizer_hash,
        min_count,
    })
}

fn check_rank_order(ids: &[TokenId], ends: &[u32], counts: &[u64]) -> Result<()> {
    let keys: Vec<&[TokenId]> = slices(ids, ends).collect();
    for (rank, pair) in keys.windows(2).enumerate() {
        let by_count = counts[rank + 1].cmp(&counts[rank]);
        let by_len = pair[0].len().cmp(&pair[1].len());
        let order = by_count.then(by_len).then_with(|| pair[0].cmp(pair[1]));
        if order != Ordering::Less {
            return Err(Error::fgram(
                pair[1],
                format!("rank {} is out of order", rank + 1),
            ));
        }
    }
    Ok(())
}

/// Takes numbers off the front; every error names the offset.
struct Reader<'a> {
    bytes: &'a [u8],
    length: usize,
}

impl Reader<'_> {
    fn wrong(&self, problem: String) -> Error {
        let offset = self.length - self.bytes.len();
        Error::argument("content", format!("{problem} (at byte {offset})"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.bytes.split_first_chunk::<N>() {
            Some((array, rest)) => {
                self.bytes = rest;
                Ok(*array)
            }
            None => Err(self.wrong("cut short".into())),
        }
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn varint(&mut self) -> Result<u64> {
        varint::take(&mut self.bytes).ok_or_else(|| self.wrong("not a number".into()))
    }

    fn id(&mut self) -> Result<TokenId> {
        let id = self.varint()?;
        let fits = u32::try_from(id).ok().filter(|&id| id < ID_LIMIT);
        fits.ok_or_else(|| self.wrong(format!("token id {id} is not below {ID_LIMIT}")))
    }

    /// The number of f-grams, checked against the bytes there are before anything is allocated.
    fn length(&mut self) -> Result<usize> {
        let len = self.u64()?;
        let most = self.bytes.len() / LEAST_BYTES;
        match usize::try_from(len) {
            Ok(len) if len <= most => Ok(len),
            _ => Err(self.wrong(format!(
                "{len} f-grams cannot fit in the {most} places left"
            ))),
        }
    }
}
