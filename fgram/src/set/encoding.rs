//! The bytes of a set file (`docs/formats.md`, "fgrams.bin").

use std::cmp::Ordering;

use super::ranked::{Ranked, SetHeader};
use super::reader::{Reader, put_key};
use super::sealed::{HASH_BYTES, seal};
use super::varint;
use crate::error::{Error, Result};
use crate::keys::KeyList;
use crate::matcher::check_max_n;

const MAGIC: [u8; 8] = *b"SCONEFGS";
const VERSION: u32 = 1;

/// Fewest bytes an f-gram takes: length, two ids, two counts, one byte each.
const LEAST_BYTES: usize = 5;

pub(super) fn encode(set: &Ranked) -> Vec<u8> {
    let header = &set.header;
    let mut out = Vec::with_capacity(128 + 12 * set.keys.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&header.vocab_size.to_le_bytes());
    out.extend_from_slice(&u32::from(header.max_n).to_le_bytes());
    out.extend_from_slice(&header.min_count.to_le_bytes());
    out.extend_from_slice(&header.tokenizer_hash);
    let totals = set.keys.count_by_length();
    for total in &totals[2..=usize::from(header.max_n)] {
        out.extend_from_slice(&total.to_le_bytes());
    }
    out.extend_from_slice(&(set.keys.len() as u64).to_le_bytes());
    for fgram in (0..set.keys.len()).map(|rank| set.get(rank)) {
        put_key(fgram.ids, &mut out);
        varint::put(fgram.count, &mut out);
        varint::put(fgram.match_count, &mut out);
    }
    seal(&mut out);
    out
}

/// Checks everything but what a set checks of its f-grams. `file` names the bytes in errors.
pub(super) fn decode(file: &str, bytes: &[u8]) -> Result<Ranked> {
    let mut reader = Reader::open(file, bytes, MAGIC, VERSION)?;
    let header = read_header(&mut reader)?;
    let lengths = 2..=usize::from(header.max_n);
    let totals = lengths
        .clone()
        .map(|_| reader.u64())
        .collect::<Result<Vec<u64>>>()?;
    let len = reader.count(LEAST_BYTES)?;
    let mut keys = KeyList::with_capacity(len);
    let mut counts = Vec::with_capacity(len);
    let mut match_counts = Vec::with_capacity(len);
    for _ in 0..len {
        reader.key(header.max_n, &mut keys)?;
        counts.push(reader.varint()?);
        match_counts.push(reader.varint()?);
    }
    reader.end()?;
    check_rank_order(&keys, &counts).map_err(|error| error.in_file(file))?;
    if keys.count_by_length()[lengths] != totals {
        return Err(reader.wrong("the totals by length do not add up"));
    }
    Ok(Ranked {
        header,
        keys,
        counts,
        match_counts,
    })
}

fn read_header(reader: &mut Reader<'_>) -> Result<SetHeader> {
    let vocab_size = reader.u32()?;
    let max_n = reader.small()?;
    check_max_n(max_n).map_err(|error| reader.name_file(error))?;
    let min_count = reader.u64()?;
    let tokenizer_hash = reader.array::<HASH_BYTES>()?;
    Ok(SetHeader {
        vocab_size,
        max_n,
        tokenizer_hash,
        min_count,
    })
}

fn check_rank_order(keys: &KeyList, counts: &[u64]) -> Result<()> {
    for rank in 1..keys.len() {
        let (before, here) = (keys.get(rank - 1), keys.get(rank));
        let by_count = counts[rank].cmp(&counts[rank - 1]);
        let by_len = before.len().cmp(&here.len());
        if by_count.then(by_len).then_with(|| before.cmp(here)) != Ordering::Less {
            return Err(Error::fgram(here, format!("rank {rank} is out of order")));
        }
    }
    Ok(())
}
