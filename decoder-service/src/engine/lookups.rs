//! The look-ups of one step: one batch for each table version.

use std::{ops::Range, sync::Arc};

use scone_embed_client::LookupTrace;
use scone_fgram::EncodedRow;

use super::ahead::Early;
use crate::embed_tier::{Answers, EmbedTier, Lookup, LookupBatch, LookupError, TableFacts};

/// All look-ups of a step. Its memory is used again by the next one.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    groups: Vec<Group>,
    /// How many of `groups` this step uses.
    used: usize,
}

/// Sequences that use the same table version.
#[derive(Debug, Default)]
struct Group {
    /// `None` for sequences that use no table.
    table: Option<Arc<TableFacts>>,
    batch: LookupBatch,
    answers: Answers,
    positions: usize,
}

/// Where the positions of one sequence lie.
pub(super) struct Stretch {
    of: Of,
    positions: Range<usize>,
}

/// Whose answers they are.
enum Of {
    /// Of a group of this step.
    Group(usize),
    /// Of a look-up that was begun before.
    Asked(Early),
}

impl Stretch {
    /// Answers that are there.
    pub(super) fn asked(early: Early) -> Self {
        Self {
            positions: early.range.clone(),
            of: Of::Asked(early),
        }
    }
}

impl Lookups {
    /// A new step begins.
    pub(super) fn clear(&mut self) {
        self.used = 0;
    }

    /// Adds one sequence's positions: `ids`, of which the first `context` are context only. `trace` is
    /// asked for a span when the look-up has none.
    pub(super) fn add(
        &mut self,
        table: Option<&Arc<TableFacts>>,
        (ids, context): (&[u32], usize),
        trace: impl FnOnce() -> Option<LookupTrace>,
    ) -> Stretch {
        let used = &self.groups[..self.used];
        let known = used.iter().position(|group| group.table.as_ref() == table);
        let at = known.unwrap_or_else(|| self.begin_group(table));
        let group = &mut self.groups[at];
        group.batch.push(ids, context);
        group.batch.trace = group.batch.trace.or_else(trace);
        let first = group.positions;
        group.positions += ids.len() - context;
        Stretch {
            of: Of::Group(at),
            positions: first..group.positions,
        }
    }

    fn begin_group(&mut self, table: Option<&Arc<TableFacts>>) -> usize {
        if self.used == self.groups.len() {
            self.groups.push(Group::default());
        }
        let group = &mut self.groups[self.used];
        group.table = table.cloned();
        group.batch.clear();
        group.positions = 0;
        self.used += 1;
        self.used - 1
    }

    /// Asks the embed tier. Without one, or for a sequence without a table, no position matches.
    pub(super) fn look_up(&mut self, tier: Option<&mut dyn EmbedTier>) {
        let mut lookups = Vec::new();
        for group in &mut self.groups[..self.used] {
            match &group.table {
                Some(table) if tier.is_some() => lookups.push(Lookup {
                    table,
                    batch: &group.batch,
                    out: &mut group.answers,
                }),
                _ => group.answers.reset(group.positions),
            }
        }
        if let Some(tier) = tier.filter(|_| !lookups.is_empty()) {
            tier.lookup(&mut lookups);
        }
    }

    /// Why positions got no answer, if some did not: the first reason met.
    pub(super) fn error(&self) -> Option<&LookupError> {
        let mut used = self.groups[..self.used].iter();
        used.find_map(|group| group.answers.error())
    }

    /// Length of the f-gram matched at each position; 0: none.
    pub(super) fn match_lengths<'a>(&'a self, stretch: &'a Stretch) -> &'a [u8] {
        &self.answers(stretch).match_lengths()[stretch.positions.clone()]
    }

    /// Which positions got no answer.
    pub(super) fn failed<'a>(&'a self, stretch: &'a Stretch) -> &'a [bool] {
        &self.answers(stretch).failed()[stretch.positions.clone()]
    }

    /// The row of each position; none where no f-gram ends or nobody answered.
    pub(super) fn rows<'a>(
        &'a self,
        stretch: &'a Stretch,
    ) -> impl Iterator<Item = Option<EncodedRow<'a>>> {
        let answers = self.answers(stretch);
        stretch.positions.clone().map(|at| answers.row(at))
    }

    fn answers<'a>(&'a self, stretch: &'a Stretch) -> &'a Answers {
        match &stretch.of {
            Of::Group(group) => &self.groups[*group].answers,
            Of::Asked(early) => early.answers(),
        }
    }
}
