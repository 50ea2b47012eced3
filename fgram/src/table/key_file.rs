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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::manifest::{StoreKind, table_id};
    use super::*;
    use crate::row::RowDtype;

    fn keys(keys: &[&[u32]]) -> KeyList {
        let mut list = KeyList::default();
        keys.iter().for_each(|key| list.push(key).unwrap());
        list
    }

    fn manifest(rows: u64) -> Manifest {
        let hash = "0".repeat(64);
        Manifest {
            format_version: 1,
            table_id: table_id(&hash, &hash, RowDtype::F16),
            model_hash: hash.clone(),
            tokenizer_hash: hash.clone(),
            fgram_set_hash: hash,
            vocab_size: 10,
            max_n: 3,
            dim: 4,
            dtype: RowDtype::F16,
            rows,
            shard_index: 0,
            shard_count: 1,
            store: StoreKind::Sled,
            rows_sha256: String::new(),
            files: Vec::new(),
        }
    }

    fn body() -> Vec<u8> {
        let mut bytes = encode(&keys(&[&[1, 2], &[1, 2, 3], &[2, 3]]), &manifest(3));
        bytes.truncate(bytes.len() - files::HASH_BYTES);
        bytes
    }

    /// Decodes `body` behind a right checksum.
    fn decode_sealed(mut body: Vec<u8>, rows: u64) -> Result<KeyList> {
        files::seal(&mut body);
        decode("keys.bin", &body, &manifest(rows))
    }

    #[test]
    fn keys_come_back_in_their_order() {
        let back = decode_sealed(body(), 3).unwrap();
        assert!(back.iter().eq([&[1u32, 2][..], &[1, 2, 3], &[2, 3]]));
    }

    #[test]
    fn a_right_checksum_is_not_enough() {
        let with = |at: usize, value: u8| {
            let mut body = body();
            body[at] = value;
            decode_sealed(body, 3).map(|_| ()).unwrap_err().to_string()
        };
        // Offsets as in docs/formats.md.
        for (text, problem) in [
            (with(8, 9), "format version 9"),
            (with(12, b'x'), "another table"),
            (with(44, 11), "another table"),
            (with(48, 4), "another table"),
            (with(52, 1), "another table"),
            (with(56, 2), "another table"),
            (with(67, 1), "cannot fit"),
            (with(68, 4), "4 ids"),
            (with(69, 10), "vocab_size 10"),
        ] {
            assert!(text.contains(problem), "{text:?} does not say {problem:?}");
        }
        let fewer = decode_sealed(body(), 4)
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(fewer.contains("3 keys, but table.json has 4"), "{fewer}");
    }

    #[test]
    fn a_key_of_another_shard_is_refused() {
        let mut manifest = manifest(1);
        manifest.shard_count = 4;
        manifest.shard_index = (shard_of([1, 2], 4) + 1) % 4;
        let bytes = encode(&keys(&[&[1, 2]]), &manifest);
        let text = decode("k", &bytes, &manifest)
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(text.contains("another shard"), "{text}");
    }

    proptest! {
        #[test]
        fn sealed_mutations_are_survived(
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut body = body();
            for (at, value) in changes {
                let at = at.index(body.len());
                body[at] = value;
            }
            let _ = decode_sealed(body.clone(), 3).map(|keys| matcher("k", &keys, 3));
            body.truncate(cut.index(body.len()));
            prop_assert!(decode_sealed(body, 3).is_err());
        }
    }
}
