//! `keys.bin`: the f-grams of one shard in served order (`docs/formats.md`, "keys.bin").

use std::path::Path;

use super::manifest::Manifest;
use crate::error::{Error, Result};
use crate::files;
use crate::keys::KeyList;
use crate::matcher::Matcher;
use crate::reader::{Reader, put_key};
use crate::set::FgramSet;
use crate::shard::shard_of;

/// Name in the table directory.
pub(super) const FILE: &str = "keys.bin";

const MAGIC: [u8; 8] = *b"SCONEKEY";
const VERSION: u32 = 1;

/// Fewest bytes a key takes: length and two ids.
const LEAST_BYTES: usize = 3;

/// Characters of a table id.
const TABLE_ID_BYTES: usize = 32;

/// The keys of shard `index` of `count` in served order.
pub(super) fn of_shard(set: &FgramSet, index: u32, count: u32) -> Result<KeyList> {
    let mut keys = KeyList::default();
    for rank in set.served_order() {
        let ids = set.get(rank as usize).ids;
        if owner(ids, count) == index {
            keys.push(ids)?;
        }
    }
    Ok(keys)
}

/// The shard of an f-gram.
fn owner(ids: &[u32], count: u32) -> u32 {
    match ids {
        [.., a, b] => shard_of([*a, *b], count),
        _ => 0,
    }
}

/// The file's bytes.
pub(super) fn encode(keys: &KeyList, manifest: &Manifest) -> Vec<u8> {
    let mut out = Vec::with_capacity(128 + 8 * keys.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(manifest.table_id.as_bytes());
    out.extend_from_slice(&manifest.vocab_size.to_le_bytes());
    out.extend_from_slice(&u32::from(manifest.max_n).to_le_bytes());
    out.extend_from_slice(&manifest.shard_index.to_le_bytes());
    out.extend_from_slice(&manifest.shard_count.to_le_bytes());
    out.extend_from_slice(&(keys.len() as u64).to_le_bytes());
    keys.iter().for_each(|key| put_key(key, &mut out));
    files::seal(&mut out);
    out
}

/// The keys in a file that belongs to `manifest`. Survives any bytes at all.
pub(super) fn decode(file: &str, bytes: &[u8], manifest: &Manifest) -> Result<KeyList> {
    let mut reader = Reader::open(file, bytes, MAGIC, VERSION)?;
    let table_id = reader.array::<TABLE_ID_BYTES>()?;
    let same = table_id == manifest.table_id.as_bytes()
        && reader.u32()? == manifest.vocab_size
        && reader.u32()? == u32::from(manifest.max_n)
        && reader.u32()? == manifest.shard_index
        && reader.u32()? == manifest.shard_count;
    if !same {
        return Err(reader.wrong("it belongs to another table or shard than table.json"));
    }
    let len = reader.count(LEAST_BYTES)?;
    if len as u64 != manifest.rows {
        return Err(reader.wrong(format!("{len} keys, but table.json has {}", manifest.rows)));
    }
    let mut keys = KeyList::with_capacity(len);
    for _ in 0..len {
        reader.key(manifest.max_n, &mut keys)?;
    }
    reader.end()?;
    let check = || {
        keys.check_vocab(manifest.vocab_size)?;
        let foreign = |key: &&[u32]| owner(key, manifest.shard_count) != manifest.shard_index;
        match keys.iter().find(foreign) {
            Some(key) => Err(Error::fgram(key, "belongs to another shard")),
            None => Ok(()),
        }
    };
    check().map_err(|error| reader.name_file(error))?;
    Ok(keys)
}

/// Reads `keys.bin` and checks it against the manifest.
pub(super) fn read(dir: &Path, manifest: &Manifest) -> Result<KeyList> {
    let path = dir.join(FILE);
    let file = path.display().to_string();
    let listed = manifest.files.iter().find(|entry| entry.path == FILE);
    let Some(listed) = listed else {
        return Err(Error::format(file, "is not listed in table.json"));
    };
    let length = std::fs::metadata(&path)
        .map_err(files::io_error("read", &path))?
        .len();
    if length != listed.bytes {
        let problem = format!("{length} bytes, but table.json says {}", listed.bytes);
        return Err(Error::format(file, problem));
    }
    let bytes = files::read(&path)?;
    if files::sha256_hex(&bytes) != listed.sha256 {
        return Err(Error::format(
            file,
            "checksum differs from that in table.json",
        ));
    }
    decode(&file, &bytes, manifest)
}

/// Builds the matcher whose row ids are positions in the file.
pub(super) fn matcher(file: &str, keys: &KeyList, max_n: u8) -> Result<Matcher> {
    Matcher::build(keys.iter(), max_n).map_err(|error| Error::format(file, error.to_string()))
}
