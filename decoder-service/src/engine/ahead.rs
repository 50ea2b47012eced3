//! Look-ups that were asked for before the step that needs them: of the rest of a prompt while a
//! part of it is computed, of tokens just chosen while they are sent to their clients.

use std::{
    cell::{Cell, OnceCell},
    ops::Range,
    rc::Rc,
};

use crate::embed_tier::{Answers, Pending};

/// Look-ups under way, one for each table version, shared by the sequences that they are for.
pub(super) struct Asked {
    pending: Cell<Option<Pending>>,
    answers: OnceCell<Vec<Answers>>,
}

impl Asked {
    pub(super) fn new(pending: Pending) -> Rc<Self> {
        Rc::new(Self {
            pending: Cell::new(Some(pending)),
            answers: OnceCell::new(),
        })
    }

    /// Waits for the answers, the first time: those of the look-up of this number.
    pub(super) fn answers(&self, of: usize) -> Option<&Answers> {
        let all = self.answers.get_or_init(|| {
            let wait = self.pending.take();
            wait.map_or_else(Vec::new, |wait| wait())
        });
        all.get(of)
    }
}

/// Where the rows of some positions of a sequence will be.
pub(super) struct Ahead {
    asked: Rc<Asked>,
    /// Which of the look-ups.
    of: usize,
    /// The first of the sequence's positions that were asked for.
    first: usize,
    /// Which of the answers are theirs.
    answers: Range<usize>,
}

impl Ahead {
    pub(super) fn new(asked: Rc<Asked>, of: usize, first: usize, answers: Range<usize>) -> Self {
        Self {
            asked,
            of,
            first,
            answers,
        }
    }

    /// Whether these positions of the sequence are among those asked for.
    pub(super) fn covers(&self, positions: &Range<usize>) -> bool {
        self.first <= positions.start && positions.end <= self.first + self.answers.len()
    }

    /// The answers of these positions, waited for. `None` when they were not asked for, or one of
    /// them failed: it may be answered when it is asked for again.
    pub(super) fn of(&self, positions: &Range<usize>) -> Option<Early> {
        if !self.covers(positions) {
            return None;
        }
        let start = self.answers.start + (positions.start - self.first);
        let range = start..start + positions.len();
        let answers = self.asked.answers(self.of)?;
        let failed = answers.failed().get(range.clone())?;
        (!failed.contains(&true)).then(|| Early {
            asked: self.asked.clone(),
            of: self.of,
            range,
        })
    }
}

/// Answers that were there before the step.
pub(super) struct Early {
    asked: Rc<Asked>,
    of: usize,
    /// The positions of a sequence among them.
    pub(super) range: Range<usize>,
}

impl Early {
    /// All of the look-up.
    pub(super) fn answers(&self) -> &Answers {
        let answers = self.asked.answers(self.of);
        answers.expect("they were there when this was made")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::embed_tier::LookupError;

    fn asked(positions: usize, failed: Range<usize>) -> Rc<Asked> {
        Asked::new(Box::new(move || {
            let mut answers = Answers::default();
            answers.reset(positions);
            answers.fail(failed, &LookupError::Unavailable("away".into()));
            vec![answers]
        }))
    }

    #[test]
    fn positions_are_found_where_they_were_asked_for() {
        let ahead = Ahead::new(asked(20, 0..0), 0, 100, 5..15);
        assert_eq!(ahead.of(&(103..106)).unwrap().range, 8..11);
        assert_eq!(ahead.of(&(100..110)).unwrap().range, 5..15);
        for outside in [99..101, 109..111, 0..5] {
            assert!(ahead.of(&outside).is_none());
        }
    }

    #[test]
    fn what_failed_is_asked_again() {
        let ahead = Ahead::new(asked(10, 4..5), 0, 0, 0..10);
        assert!(ahead.of(&(0..4)).is_some());
        assert!(ahead.of(&(3..6)).is_none());
        assert!(ahead.of(&(5..10)).is_some());
        let of_another = Ahead::new(asked(10, 0..0), 1, 0, 0..10);
        assert!(of_another.of(&(0..4)).is_none());
    }
}
