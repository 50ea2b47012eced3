//! Manifests and files of one, for the tests of the file readers.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use scone_files::sha256_hex;

use super::manifest::{FORMAT_VERSION, FileEntry, Manifest, StoreKind, table_id};
use super::table_file::{FileKind, HEADER_BYTES};
use scone_row::RowDtype;

/// A mapped table of ids below 10 and f16 rows of 4, in one shard, without files.
pub(crate) fn manifest(rows: u64, max_n: u8) -> Manifest {
    let hash = "0".repeat(64);
    let table_id = table_id(&hash, &hash, RowDtype::F16);
    Manifest {
        format_version: FORMAT_VERSION,
        checksum_seed: table_id.clone(),
        table_id,
        model_hash: hash.clone(),
        base_hash: None,
        tokenizer_hash: hash.clone(),
        fgram_set_hash: hash,
        vocab_size: 10,
        max_n,
        dim: 4,
        dtype: RowDtype::F16,
        rows,
        shard_index: 0,
        shard_count: 1,
        store: StoreKind::Mapped,
        rows_sha256: None,
        files: Vec::new(),
    }
}

/// Writes `bytes` as a file of `kind`, lists it in `manifest` and calls `open`.
pub(crate) fn open_with<T>(
    kind: &FileKind,
    bytes: &[u8],
    manifest: &mut Manifest,
    open: impl FnOnce(&Path, &Manifest) -> T,
) -> T {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(kind.name), bytes).unwrap();
    manifest.files.push(FileEntry {
        path: kind.name.to_owned(),
        bytes: bytes.len() as u64,
        sha256: sha256_hex(bytes),
    });
    open(dir.path(), manifest)
}

/// Gives the header of a file a right checksum.
pub(crate) fn reseal(bytes: &mut [u8]) {
    if let Some(header) = bytes.first_chunk_mut::<HEADER_BYTES>() {
        let crc = crc32fast::hash(&header[..HEADER_BYTES - 4]);
        header[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    }
}
