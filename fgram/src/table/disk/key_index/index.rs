//! The open index, and longest matches in it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::layout::{
    EMPTY, KIND, Lengths, PILOT_BYTES, Partition, SLOT_BYTES, bucket_of, extend, fingerprint,
    partition_of, read_directory, slot_of,
};
use crate::error::Result;
use crate::matcher::Match;
use crate::ngram::{MAX_N, NGram, TokenId};
use crate::table::disk::key_file::KeyFile;
use crate::table::disk::manifest::Manifest;
use crate::table::disk::prefetch::prefetch;
use crate::table::disk::table_file::{HEADER_BYTES, TableFile};

/// Heads matched in step: enough to keep the memory busy, few enough for the first cache.
const LANES: usize = 32;

/// Where to look for a hash: at its pilot, which names the slot.
#[derive(Clone, Copy, Default)]
struct Probe {
    hash: u64,
    /// Where the pilot is in the file.
    pilot: usize,
    /// Where the slots of its partition begin, and how many there are.
    first_slot: u32,
    slots: u32,
}

/// One head being matched.
#[derive(Clone, Copy)]
struct Lane {
    probe: Probe,
    /// Where the slot of the probe is in the file.
    slot: usize,
    /// The longest candidate; length 0 for none.
    found: Match,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            probe: Probe::default(),
            slot: 0,
            found: Match { len: 0, row: EMPTY },
        }
    }
}

/// Finds the f-grams of a table.
///
/// It is a copy of `index.bin` that was checked when it was read: an f-gram that is not found is not
/// there, which no later change of the file can feign. The keys that it is compared with stay in
/// their file, for they check themselves: each key has one slot, so one that differs from what is
/// looked for is that of another f-gram with the same fingerprint, or damaged.
pub struct KeyIndex {
    file: TableFile,
    keys: Arc<KeyFile>,
    /// Where the hash starts.
    seed: u64,
    partitions: Vec<Partition>,
    /// Where the pilots and the slots begin in the file.
    pilots_at: usize,
    slots_at: usize,
    max_n: usize,
}

impl KeyIndex {
    /// Reads the index in `dir`, all of it.
    pub(crate) fn open(dir: &Path, manifest: &Manifest, keys: Arc<KeyFile>) -> Result<Self> {
        let file = TableFile::read(dir, manifest, &KIND)?;
        let [seed, partitions, slots, buckets, directory_crc, _] = file.facts();
        let body = &file.bytes()[HEADER_BYTES..];
        let lengths = Lengths::of(partitions, buckets, slots);
        let Some(lengths) = lengths.filter(|lengths| lengths.total() == body.len()) else {
            return Err(file.wrong("its parts do not fill it"));
        };
        let directory = &body[..lengths.directory];
        if u64::from(crc32fast::hash(directory)) != directory_crc {
            return Err(file.wrong("checksum of the directory does not match: it is damaged"));
        }
        let Some(partitions) = read_directory(directory, slots, buckets) else {
            return Err(file.wrong("the directory is out of order"));
        };
        Ok(Self {
            keys,
            seed,
            partitions,
            pilots_at: HEADER_BYTES + lengths.directory,
            slots_at: HEADER_BYTES + lengths.directory + lengths.pilots,
            max_n: usize::from(manifest.max_n),
            file,
        })
    }

    /// The longest f-gram that ends at the last of `ids`, looking only inside `ids`. Makes at
    /// most K-1 probes.
    ///
    /// # Errors
    /// When a key that it was compared with is damaged.
    #[inline]
    pub fn longest(&self, ids: &[TokenId]) -> Result<Option<Match>> {
        let mut candidates = [(EMPTY, 0); MAX_N + 1];
        let mut longest = 1;
        let mut hash = self.seed;
        for (&id, n) in ids.iter().rev().take(self.max_n).zip(1..) {
            hash = extend(hash, id);
            if n == 1 {
                continue;
            }
            let slot = self.slot(&self.probe(hash));
            let Some(row) = self.row_in(self.slot_at(slot), hash) else {
                break;
            };
            candidates[n] = (row, slot);
            longest = n;
        }
        for n in (2..=longest).rev() {
            let (row, slot) = candidates[n];
            if self.keys.is(row, &ids[ids.len() - n..]) {
                return Ok(Some(Match { len: n as u8, row }));
            }
            self.check_other(row, slot)?;
        }
        Ok(None)
    }

    /// Checks the key of a row that is not the one that was looked for: it must be one that has
    /// this slot, with this fingerprint. A damaged one passes once in 256 times the number of slots.
    #[cold]
    fn check_other(&self, row: u32, slot: usize) -> Result<()> {
        let key = self.keys.get(row)?;
        let ids = key.as_slice().iter().rev();
        let hash = ids.fold(self.seed, |hash, &id| extend(hash, id));
        let its_own = self.slot(&self.probe(hash)) == slot;
        match its_own && self.row_in(self.slot_at(slot), hash) == Some(row) {
            true => Ok(()),
            false => Err(self.keys.damaged(row)),
        }
    }

    /// Appends what [`KeyIndex::longest`] finds at the end of each of `heads`. Faster than one
    /// call each when the index is larger than the caches: the reads of many heads are under way
    /// at once, where those of one head wait for each other.
    ///
    /// # Errors
    /// As [`KeyIndex::longest`].
    pub fn longest_each(&self, heads: &[&[TokenId]], out: &mut Vec<Option<Match>>) -> Result<()> {
        let mut lanes = heads.chunks(LANES);
        lanes.try_for_each(|heads| self.longest_lanes(heads, out))
    }

    /// At most [`LANES`] heads, in step: n = 2 for all, then n = 3 for those that matched, …
    /// What the next step reads is asked for as soon as its address is known.
    fn longest_lanes(&self, heads: &[&[TokenId]], out: &mut Vec<Option<Match>>) -> Result<()> {
        let mut lanes = [Lane::default(); LANES];
        let mut live = [0u8; LANES];
        let mut count = 0;
        for (i, (lane, ids)) in lanes.iter_mut().zip(heads).enumerate() {
            if let [.., before, last] = **ids {
                let hash = extend(extend(self.seed, last), before);
                lane.probe = self.probe_soon(hash);
                live[count] = i as u8;
                count += 1;
            }
        }
        for n in 2..=self.max_n {
            for &i in &live[..count] {
                let lane = &mut lanes[usize::from(i)];
                lane.slot = self.slot(&lane.probe);
                self.file.bytes().get(lane.slot).map(prefetch);
            }
            let mut kept = 0;
            for at in 0..count {
                let i = live[at];
                let (lane, ids) = (&mut lanes[usize::from(i)], heads[usize::from(i)]);
                let Some(row) = self.row_in(self.slot_at(lane.slot), lane.probe.hash) else {
                    continue;
                };
                lane.found = Match { len: n as u8, row };
                if n < self.max_n && ids.len() > n {
                    let hash = extend(lane.probe.hash, ids[ids.len() - n - 1]);
                    lane.probe = self.probe_soon(hash);
                    live[kept] = i;
                    kept += 1;
                }
            }
            count = kept;
        }
        for lane in lanes[..heads.len()]
            .iter()
            .filter(|lane| lane.found.len > 0)
        {
            self.keys.prefetch(lane.found.row);
        }
        for (ids, lane) in heads.iter().zip(&lanes) {
            let Match { len, row } = lane.found;
            out.push(match usize::from(len) {
                0 => None,
                n if self.keys.is(row, &ids[ids.len() - n..]) => Some(lane.found),
                // A fingerprint met by chance; `longest` knows the shorter candidates.
                _ => self.longest(ids)?,
            });
        }
        Ok(())
    }

    /// The row id of exactly these ids.
    ///
    /// # Errors
    /// As [`KeyIndex::longest`].
    pub fn row(&self, ids: &[TokenId]) -> Result<Option<u32>> {
        let found = self.longest(ids)?;
        let found = found.filter(|found| usize::from(found.len) == ids.len());
        Ok(found.map(|found| found.row))
    }

    /// Where to look for `hash`.
    #[inline]
    fn probe(&self, hash: u64) -> Probe {
        #[cfg(test)]
        PROBES.with(|probes| probes.set(probes.get() + 1));
        // A directory has at least one partition, and each at least one slot and one bucket.
        let at = partition_of(hash, self.partitions.len() as u32);
        let partition = self.partitions[at as usize];
        let bucket = partition.first_bucket + bucket_of(hash, partition.buckets);
        Probe {
            hash,
            pilot: self.pilots_at + PILOT_BYTES * bucket as usize,
            first_slot: partition.first_slot,
            slots: partition.slots,
        }
    }

    /// The same; asks for the pilot.
    #[inline]
    fn probe_soon(&self, hash: u64) -> Probe {
        let probe = self.probe(hash);
        self.file.bytes().get(probe.pilot).map(prefetch);
        probe
    }

    /// Where the slot of a probe is in the file; reads the pilot.
    #[inline]
    fn slot(&self, probe: &Probe) -> usize {
        let bytes = self.file.bytes();
        let pilot = u16::from_le_bytes([bytes[probe.pilot], bytes[probe.pilot + 1]]);
        let slot = slot_of(probe.hash, pilot, probe.slots);
        self.slots_at + SLOT_BYTES * (probe.first_slot + slot) as usize
    }

    /// The slot at `at`; an empty one behind the end, where there is none.
    #[inline]
    fn slot_at(&self, at: usize) -> [u8; SLOT_BYTES] {
        let slot = self.file.bytes().get(at..at + SLOT_BYTES);
        let slot = slot.and_then(<[u8]>::first_chunk).copied();
        slot.unwrap_or([u8::MAX; SLOT_BYTES])
    }

    /// The row that a slot names, when it has the fingerprint of `hash`.
    #[inline]
    fn row_in(&self, slot: [u8; SLOT_BYTES], hash: u64) -> Option<u32> {
        let [print, row @ ..] = slot;
        let row = u32::from_le_bytes(row);
        (print == fingerprint(hash) && row < self.keys.rows()).then_some(row)
    }

    /// Number of f-grams.
    pub fn len(&self) -> usize {
        self.keys.rows() as usize
    }

    /// Whether there are no f-grams at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// K: the longest f-gram allowed, in tokens.
    pub fn max_n(&self) -> u8 {
        self.max_n as u8
    }

    /// Bytes of the index, without the keys it is checked against.
    pub fn index_bytes(&self) -> usize {
        self.file.bytes().len()
    }

    /// The keys that the index is about.
    pub(crate) fn keys(&self) -> &Arc<KeyFile> {
        &self.keys
    }

    /// Compares the SHA-256 of the file with `table.json`.
    pub(crate) fn verify_sha256(&self, manifest: &Manifest) -> Result<()> {
        self.file.verify(manifest, &KIND)
    }

    /// Compares the file with what was read, and checked, when it was opened.
    pub(crate) fn check_same(&self) -> Result<()> {
        self.file.check_same()
    }

    /// Finds the keys of the rows from `first` on.
    ///
    /// # Errors
    /// When one is not found, or another row than its own.
    pub(crate) fn check_finds(&self, first: u32, keys: &[NGram]) -> Result<()> {
        let heads: Vec<&[TokenId]> = keys.iter().map(NGram::as_slice).collect();
        let mut found = Vec::with_capacity(keys.len());
        self.longest_each(&heads, &mut found)?;
        for ((row, key), found) in (first..).zip(&heads).zip(found) {
            let len = key.len() as u8;
            if found != Some(Match { len, row }) {
                return Err(self.keys.not_found(row, key));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for KeyIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyIndex")
            .field("len", &self.len())
            .field("max_n", &self.max_n)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
thread_local! {
    /// Probes made by this thread.
    pub(super) static PROBES: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}
