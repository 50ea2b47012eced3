//! A set whose f-grams are checked, and its matcher.

use std::path::Path;
use std::{fmt, fs};

use scone_files::{sha256_hex, write_atomic};

use super::encoding;
use super::ranked::{Fgram, Ranked, SetHeader};
use crate::error::{Error, Result};
use crate::keys::KeyList;
use crate::matcher::{ID_LIMIT, Matcher, check_max_n};
use crate::ngram::{MAX_N, NGram};

/// f-grams in rank order: count descending, shorter first, then by ids. Closed under prefix and
/// suffix, which is what lets a [`Matcher`] stop at its first miss.
#[derive(Clone)]
pub struct FgramSet {
    ranked: Ranked,
    matcher: Matcher,
}

impl FgramSet {
    /// Checks the f-grams and sorts them into rank order. Match counts start at 0.
    ///
    /// # Errors
    /// When the header is impossible, an f-gram has fewer than 2 or more than K ids, an id is not
    /// in the vocabulary, an f-gram comes twice, or one of its parts of length n-1 is missing.
    pub fn new(header: SetHeader, mut fgrams: Vec<(NGram, u64)>) -> Result<Self> {
        fgrams.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let mut keys = KeyList::with_capacity(fgrams.len());
        for (gram, _) in &fgrams {
            keys.push(gram.as_slice())?;
        }
        let counts: Vec<u64> = fgrams.into_iter().map(|(_, count)| count).collect();
        let match_counts = vec![0; counts.len()];
        Self::from_ranked(Ranked {
            header,
            keys,
            counts,
            match_counts,
        })
    }

    /// From parts in rank order, as a file holds them; checks all but the order.
    fn from_ranked(ranked: Ranked) -> Result<Self> {
        let (header, keys) = (&ranked.header, &ranked.keys);
        check_header(header)?;
        keys.check_vocab(header.vocab_size)?;
        let matcher = Matcher::build(keys.iter(), header.max_n)?;
        for key in keys.iter().filter(|key| key.len() > 2) {
            if matcher.row(&key[..key.len() - 1]).is_none() {
                return Err(Error::fgram(key, "its prefix is not in the set"));
            }
        }
        Ok(Self { ranked, matcher })
    }

    /// Records how often each f-gram, by rank, is the longest match in the training corpus.
    ///
    /// # Errors
    /// When there is not one count for each f-gram.
    pub fn set_match_counts(&mut self, counts: Vec<u64>) -> Result<()> {
        if counts.len() != self.len() {
            let problem = format!("{} counts for {} f-grams", counts.len(), self.len());
            return Err(Error::argument("match_counts", problem));
        }
        self.ranked.match_counts = counts;
        Ok(())
    }

    /// What the set was mined from.
    pub fn header(&self) -> &SetHeader {
        &self.ranked.header
    }

    /// S: the number of f-grams.
    pub fn len(&self) -> usize {
        self.ranked.keys.len()
    }

    /// Whether there are no f-grams.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The f-gram of a rank, 0-based.
    ///
    /// # Panics
    /// When `rank` is not below [`FgramSet::len`].
    pub fn get(&self, rank: usize) -> Fgram<'_> {
        self.ranked.get(rank)
    }

    /// All f-grams in rank order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Fgram<'_>> + DoubleEndedIterator + Clone {
        (0..self.len()).map(|rank| self.get(rank))
    }

    /// How many f-grams there are of each length; index n is length n.
    pub fn count_by_length(&self) -> [u64; MAX_N + 1] {
        self.ranked.keys.count_by_length()
    }

    /// Ranks in the order tables keep their rows: most often served first, then by rank.
    pub fn served_order(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        // A stable sort keeps equal ones by rank.
        let match_counts = &self.ranked.match_counts;
        order.sort_by_key(|&rank| std::cmp::Reverse(match_counts[rank as usize]));
        order
    }

    /// A matcher whose row ids are ranks. It shares its memory with the set.
    pub fn matcher(&self) -> Matcher {
        self.matcher.clone()
    }

    /// Reads a set file.
    ///
    /// # Errors
    /// When the file cannot be read, or is damaged in any way.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(Error::at("read", path))?;
        let file = path.display().to_string();
        let ranked = encoding::decode(&file, &bytes)?;
        // What is made next takes as much memory as a large file.
        drop(bytes);
        Self::from_ranked(ranked).map_err(|error| error.in_file(&file))
    }

    /// Reads the bytes of a set file. Survives any bytes at all.
    ///
    /// # Errors
    /// When they are not exactly what [`FgramSet::to_bytes`] writes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let ranked = encoding::decode("f-gram set", bytes)?;
        Self::from_ranked(ranked).map_err(|error| error.in_file("f-gram set"))
    }

    /// Writes a set file; `path` is never half of one, also after a power cut.
    ///
    /// # Errors
    /// When the file cannot be written; `path` is then as before.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        Ok(write_atomic(path.as_ref(), &self.to_bytes())?)
    }

    /// The bytes of the set file; equal sets give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        encoding::encode(&self.ranked)
    }

    /// SHA-256 of the set file in lower-case hexadecimal. Encodes the whole set: keep the result.
    pub fn hash(&self) -> String {
        sha256_hex(&self.to_bytes())
    }
}

impl fmt::Debug for FgramSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("FgramSet");
        shown
            .field("header", self.header())
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

fn check_header(header: &SetHeader) -> Result<()> {
    check_max_n(header.max_n)?;
    if header.vocab_size == 0 || header.vocab_size > ID_LIMIT {
        let problem = format!("{} is not 1 to {ID_LIMIT}", header.vocab_size);
        return Err(Error::argument("vocab_size", problem));
    }
    Ok(())
}
