//! Making `index.bin`.

use std::sync::{Mutex, PoisonError};
use std::thread;

use super::layout::{
    EMPTY, ENTRY_BYTES, KIND, PILOT_BYTES, SLOT_BYTES, bucket_of, extend, fingerprint,
    partition_of, slot_of,
};
use crate::error::{Error, Result};
use crate::keys::Keys;
use crate::ngram::TokenId;
use crate::table::disk::manifest::Manifest;

/// Keys of a partition on average: its slots and pilots fit the cache of a core while it is built.
const PARTITION_KEYS: usize = 8192;

/// Keys of a bucket on average. More make the index smaller and the search for pilots longer.
const BUCKET_KEYS: usize = 4;

/// One slot in this many more than there are keys: a load of 0.95.
const KEYS_PER_FREE_SLOT: usize = 19;

/// Seeds tried. One suffices unless two keys have equal hashes, 1 in 30 tables of 2^30 keys.
const SEEDS: u64 = 16;

/// A key on its way into the index: 12 bytes.
#[derive(Clone, Copy, Default)]
struct Entry {
    /// In two halves, so that the row fills up the third.
    halves: [u32; 2],
    row: u32,
}

impl Entry {
    fn new(hash: u64, row: u32) -> Self {
        Self {
            halves: [(hash >> 32) as u32, hash as u32],
            row,
        }
    }

    fn hash(&self) -> u64 {
        let [high, low] = self.halves.map(u64::from);
        high << 32 | low
    }
}

/// The file's bytes for keys that are closed under suffix; a key's row id is its position.
/// `threads` share the work; the bytes do not depend on how many there are.
///
/// # Errors
/// When a key comes twice.
pub(crate) fn encode(keys: &impl Keys, manifest: &Manifest, threads: usize) -> Result<Vec<u8>> {
    let built = (0..SEEDS).find_map(|seed| encode_with(seed, keys, manifest, threads));
    built.ok_or_else(|| Error::argument("fgrams", "a key comes twice"))
}

/// `None` when the keys of a bucket cannot be kept apart with this seed.
fn encode_with(
    seed: u64,
    keys: &impl Keys,
    manifest: &Manifest,
    threads: usize,
) -> Option<Vec<u8>> {
    let partitions = keys.len().div_ceil(PARTITION_KEYS).max(1);
    let (entries, starts) = partitioned(seed, keys, partitions);
    let sizes: Vec<usize> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let slots: usize = sizes.iter().map(|&keys| slots_for(keys)).sum();
    let buckets: usize = sizes.iter().map(|&keys| buckets_for(keys)).sum();
    let directory = directory(&sizes);
    let facts = [
        seed,
        partitions as u64,
        slots as u64,
        buckets as u64,
        u64::from(crc32fast::hash(&directory)),
        0,
    ];
    let mut out = KIND.header(manifest, facts).to_vec();
    out.extend_from_slice(&directory);
    let tables_at = out.len();
    out.resize(tables_at + PILOT_BYTES * buckets + SLOT_BYTES * slots, 0);
    let (pilots, slots) = out[tables_at..].split_at_mut(PILOT_BYTES * buckets);
    let jobs = jobs(&entries, &sizes, pilots, slots);
    fill_all(jobs, threads).then_some(out)
}

/// Slots of a partition: at least one is free.
fn slots_for(keys: usize) -> usize {
    keys + keys / KEYS_PER_FREE_SLOT + 1
}

fn buckets_for(keys: usize) -> usize {
    keys / BUCKET_KEYS + 1
}

fn hash_of(seed: u64, ids: &[TokenId]) -> u64 {
    ids.iter().rev().fold(seed, |hash, &id| extend(hash, id))
}

/// The entries sorted by partition, and where each partition begins and the last one ends.
fn partitioned(seed: u64, keys: &impl Keys, partitions: usize) -> (Vec<Entry>, Vec<usize>) {
    let of = |ids: &[TokenId]| partition_of(hash_of(seed, ids), partitions as u32) as usize;
    let mut starts = vec![0; partitions + 1];
    (0..keys.len()).for_each(|row| starts[of(keys.get(row)) + 1] += 1);
    for partition in 0..partitions {
        starts[partition + 1] += starts[partition];
    }
    let mut next = starts.clone();
    let mut entries = vec![Entry::default(); keys.len()];
    for row in 0..keys.len() {
        let hash = hash_of(seed, keys.get(row));
        let position = &mut next[partition_of(hash, partitions as u32) as usize];
        entries[*position] = Entry::new(hash, row as u32);
        *position += 1;
    }
    (entries, starts)
}

/// First slot and first bucket of each partition, and the ends.
fn directory(sizes: &[usize]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ENTRY_BYTES * (sizes.len() + 1));
    let (mut slot, mut bucket) = (0u32, 0u32);
    let mut put = |slot: u32, bucket: u32| {
        out.extend_from_slice(&slot.to_le_bytes());
        out.extend_from_slice(&bucket.to_le_bytes());
    };
    for &keys in sizes {
        put(slot, bucket);
        // Fewer than 2^31 keys make fewer than 2^32 slots.
        slot += slots_for(keys) as u32;
        bucket += buckets_for(keys) as u32;
    }
    put(slot, bucket);
    out
}

/// One partition and its part of the file.
struct Job<'a> {
    entries: &'a [Entry],
    pilots: &'a mut [u8],
    slots: &'a mut [u8],
}

fn jobs<'a>(
    mut entries: &'a [Entry],
    sizes: &[usize],
    mut pilots: &'a mut [u8],
    mut slots: &'a mut [u8],
) -> Vec<Job<'a>> {
    let mut jobs = Vec::with_capacity(sizes.len());
    for &keys in sizes {
        let (mine, rest) = entries.split_at(keys);
        entries = rest;
        let (my_pilots, rest) = pilots.split_at_mut(PILOT_BYTES * buckets_for(keys));
        pilots = rest;
        let (my_slots, rest) = slots.split_at_mut(SLOT_BYTES * slots_for(keys));
        slots = rest;
        jobs.push(Job {
            entries: mine,
            pilots: my_pilots,
            slots: my_slots,
        });
    }
    jobs
}

/// Does the jobs on `threads` threads; false when one of them failed.
fn fill_all(jobs: Vec<Job<'_>>, threads: usize) -> bool {
    let threads = threads.clamp(1, jobs.len());
    let queue = Mutex::new(jobs.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || std::iter::from_fn(next).all(fill);
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mine = work();
        let theirs = others
            .into_iter()
            .all(|other| other.join().unwrap_or(false));
        mine && theirs
    })
}

/// Finds a pilot for each bucket, the fullest first, and fills the slots.
fn fill(job: Job<'_>) -> bool {
    let buckets = job.pilots.len() / PILOT_BYTES;
    let slots = (job.slots.len() / SLOT_BYTES) as u32;
    let mut entries = job.entries.to_vec();
    entries.sort_unstable_by_key(|entry| (bucket_of(entry.hash(), buckets as u32), entry.hash()));
    let by_bucket = |a: &Entry, b: &Entry| {
        bucket_of(a.hash(), buckets as u32) == bucket_of(b.hash(), buckets as u32)
    };
    let mut groups: Vec<&[Entry]> = entries.chunk_by(by_bucket).collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
    let mut taken = vec![false; slots as usize];
    let (slot_bytes, _) = job.slots.as_chunks_mut::<SLOT_BYTES>();
    let (pilot_bytes, _) = job.pilots.as_chunks_mut::<PILOT_BYTES>();
    let [a, b, c, d] = EMPTY.to_le_bytes();
    slot_bytes.fill([0, a, b, c, d]);
    for group in groups {
        let Some(pilot) = (0..=u16::MAX).find(|&pilot| take(group, pilot, &mut taken)) else {
            return false;
        };
        pilot_bytes[bucket_of(group[0].hash(), buckets as u32) as usize] = pilot.to_le_bytes();
        for entry in group {
            let [a, b, c, d] = entry.row.to_le_bytes();
            let slot = slot_of(entry.hash(), pilot, slots) as usize;
            slot_bytes[slot] = [fingerprint(entry.hash()), a, b, c, d];
        }
    }
    true
}

/// Takes the slots that `pilot` gives the entries, unless one of them is taken.
fn take(group: &[Entry], pilot: u16, taken: &mut [bool]) -> bool {
    let slots = taken.len() as u32;
    for (done, entry) in group.iter().enumerate() {
        let slot = &mut taken[slot_of(entry.hash(), pilot, slots) as usize];
        if *slot {
            for entry in &group[..done] {
                taken[slot_of(entry.hash(), pilot, slots) as usize] = false;
            }
            return false;
        }
        *slot = true;
    }
    true
}
