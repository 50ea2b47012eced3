//! The layout of `index.bin` (`docs/formats.md`, "index.bin"): its parts, and how a hash finds its
//! slot in them.

use crate::ngram::TokenId;
use crate::shard::splitmix64;
use crate::table::disk::names::INDEX_FILE;
use crate::table::disk::table_file::FileKind;

/// Magic, version and name.
pub(crate) const KIND: FileKind = FileKind {
    name: INDEX_FILE,
    magic: *b"SCONEIDX",
    version: 1,
};

/// Bytes of a slot: the fingerprint, then the row id.
pub(super) const SLOT_BYTES: usize = 5;

/// Bytes of a pilot.
pub(super) const PILOT_BYTES: usize = 2;

/// Bytes of a directory entry: first slot and first bucket of a partition.
pub(super) const ENTRY_BYTES: usize = 8;

/// The row id of an empty slot: above all others.
pub(super) const EMPTY: u32 = u32::MAX;

/// Where the keys of one partition are.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Partition {
    pub(super) first_slot: u32,
    pub(super) slots: u32,
    pub(super) first_bucket: u32,
    pub(super) buckets: u32,
}

/// Bytes of the parts behind the header.
pub(super) struct Lengths {
    pub(super) directory: usize,
    pub(super) pilots: usize,
    pub(super) slots: usize,
}

impl Lengths {
    /// `None` when they are more than memory has.
    pub(super) fn of(partitions: u64, buckets: u64, slots: u64) -> Option<Self> {
        let part = |count: u64, bytes: usize| usize::try_from(count).ok()?.checked_mul(bytes);
        let lengths = Self {
            directory: part(partitions.checked_add(1)?, ENTRY_BYTES)?,
            pilots: part(buckets, PILOT_BYTES)?,
            slots: part(slots, SLOT_BYTES)?,
        };
        let total = lengths.directory.checked_add(lengths.pilots)?;
        total.checked_add(lengths.slots).map(|_| lengths)
    }

    pub(super) fn total(&self) -> usize {
        self.directory + self.pilots + self.slots
    }
}

/// The partitions, when there are any, they follow each other and fill all slots and buckets, and
/// each has both.
pub(super) fn read_directory(bytes: &[u8], slots: u64, buckets: u64) -> Option<Vec<Partition>> {
    let read = |entry: &[u8; ENTRY_BYTES]| {
        let [a, b, c, d, e, f, g, h] = *entry;
        [[a, b, c, d], [e, f, g, h]].map(u32::from_le_bytes)
    };
    let mut starts = bytes.as_chunks::<ENTRY_BYTES>().0.iter().map(read);
    let mut start = starts.next().filter(|start| *start == [0, 0])?;
    let mut partitions = Vec::with_capacity(bytes.len() / ENTRY_BYTES);
    for end in starts {
        let partition = Partition {
            first_slot: start[0],
            slots: end[0].checked_sub(start[0]).filter(|&slots| slots > 0)?,
            first_bucket: start[1],
            buckets: end[1]
                .checked_sub(start[1])
                .filter(|&buckets| buckets > 0)?,
        };
        partitions.push(partition);
        start = end;
    }
    let whole = start.map(u64::from) == [slots, buckets];
    (whole && !partitions.is_empty()).then_some(partitions)
}

/// The hash of `id` and the ids after it, from the hash of the ids after it.
#[inline]
pub(super) fn extend(hash: u64, id: TokenId) -> u64 {
    splitmix64(hash ^ u64::from(id))
}

/// Spreads 32 evenly distributed bits over `0..count`.
#[inline]
fn spread(bits: u32, count: u32) -> u32 {
    ((u64::from(bits) * u64::from(count)) >> 32) as u32
}

#[inline]
pub(super) fn partition_of(hash: u64, partitions: u32) -> u32 {
    spread((hash >> 32) as u32, partitions)
}

#[inline]
pub(super) fn bucket_of(hash: u64, buckets: u32) -> u32 {
    spread(hash as u32, buckets)
}

/// Independent of partition and bucket: bits of all the hash.
#[inline]
pub(super) fn fingerprint(hash: u64) -> u8 {
    (hash.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 56) as u8
}

/// Where a pilot sends a hash: another slot for each pilot.
#[inline]
pub(super) fn slot_of(hash: u64, pilot: u16, slots: u32) -> u32 {
    let mixed = (hash ^ splitmix64(u64::from(pilot))).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    spread((mixed >> 32) as u32, slots)
}
