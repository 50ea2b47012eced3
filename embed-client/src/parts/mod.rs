//! Cuts a batch into messages for the shards and puts their answers together. No network here.

use std::ops::Range;

use scone_fgram::{shard_of, table::Span};
use scone_proto::{
    TraceContext,
    embed::v1::{self as proto, GetTableInfoResponse, LookupRows},
};

use crate::{
    batch::{Answers, LookupBatch},
    facts::TableFacts,
};

/// Rows of about this many bytes come in one message: large enough that its fixed cost does not
/// matter, small enough that reading, sending and decoding of a prompt overlap.
const ROWS_BYTES_A_MESSAGE: usize = 1 << 20;

/// No answer is larger: rows, or 16 of the largest ones, with all that goes with them.
pub(crate) const LARGEST_ANSWER_BYTES: usize =
    4 * ROWS_BYTES_A_MESSAGE + 16 * (4 << 20) + (64 << 10);

/// What bounds one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Most token ids, context included.
    pub(crate) ids: usize,
    /// Most spans.
    pub(crate) spans: usize,
    /// Most positions to answer.
    pub(crate) answers: usize,
}

impl Limits {
    /// Limits of a replica, in which a span of `max_n` ids fits or an error says why not.
    pub(crate) fn of(info: &GetTableInfoResponse) -> Result<Self, String> {
        // Besides 4 bytes an id, a span takes up to 14 bytes and the rest of a message 192.
        let bytes = (info.max_request_bytes as usize).saturating_sub(192);
        let ids = (bytes / 18).min(info.max_positions as usize);
        let limits = Self {
            ids,
            spans: info.max_spans as usize,
            answers: (ROWS_BYTES_A_MESSAGE / (info.row_bytes as usize).max(1))
                .clamp(16, ids.max(16)),
        };
        if limits.ids < 2 * info.max_n as usize || limits.spans == 0 {
            return Err(format!(
                "its request limits are too small (max_request_bytes {}, max_positions {}, max_spans {})",
                info.max_request_bytes, info.max_positions, info.max_spans
            ));
        }
        Ok(limits)
    }

    /// The limits that hold for both.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            ids: self.ids.min(other.ids),
            spans: self.spans.min(other.spans),
            answers: self.answers.min(other.answers),
        }
    }
}

/// One message for one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) shard: u32,
    ids: Vec<u32>,
    spans: Vec<Span>,
    /// For each span, which positions of the batch it answers.
    positions: Vec<Range<usize>>,
    /// The span that the look-up is.
    trace: Option<TraceContext>,
}

impl Part {
    /// As a message without an id.
    pub(crate) fn request(&self, table: &TableFacts) -> proto::LookupRequest {
        let token_ids: Vec<u8> = self.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let spans = self.spans.iter().map(|span| proto::Span {
            context: span.context,
            answers: span.answers,
        });
        proto::LookupRequest {
            id: 0,
            token_ids: token_ids.into(),
            spans: spans.collect(),
            table_id: Some(table.table_id.clone()),
            table: table.name.as_str().to_owned(),
            traceparent: self.trace.map_or_else(String::new, |span| span.to_string()),
        }
    }

    /// How many positions it asks for.
    pub(crate) fn answers(&self) -> usize {
        self.positions.iter().map(Range::len).sum()
    }

    /// The positions of the batch that only this part can answer.
    pub(crate) fn owned(&self, shards: u32) -> impl Iterator<Item = usize> + '_ {
        self.windows()
            .filter(move |(_, ids)| owner(ids, shards) == Some(self.shard))
            .map(|(position, _)| position)
    }

    /// Each answered position: where in the batch, and the ids up to it within its span.
    fn windows(&self) -> impl Iterator<Item = (usize, &[u32])> {
        let mut from = 0;
        self.spans
            .iter()
            .zip(&self.positions)
            .flat_map(move |(span, positions)| {
                let (start, first) = (from, from + span.context as usize);
                from = first + span.answers as usize;
                positions
                    .clone()
                    .enumerate()
                    .map(move |(i, position)| (position, &self.ids[start..=first + i]))
            })
    }

    fn push(&mut self, ids: &[u32], context: usize, positions: Range<usize>) {
        self.ids.extend_from_slice(ids);
        self.spans.push(Span {
            context: context as u32,
            answers: positions.len() as u32,
        });
        self.positions.push(positions);
    }

    fn has_room(&self, ids: usize, answers: usize, limits: Limits) -> bool {
        self.spans.len() < limits.spans
            && self.ids.len() + ids <= limits.ids
            && self.answers() + answers <= limits.answers
    }
}

/// The shard that answers the last position of `ids`; none when no f-gram can end there.
fn owner(ids: &[u32], shards: u32) -> Option<u32> {
    match ids {
        [.., a, b] => Some(shard_of([*a, *b], shards)),
        _ => None,
    }
}

/// Cuts a batch into messages within `limits`. A span longer than a message goes in pieces, each
/// with `max_n - 1` ids of context; a piece goes to every shard that owns one of its positions.
pub(crate) fn split(batch: &LookupBatch, max_n: usize, shards: u32, limits: Limits) -> Vec<Part> {
    let mut done = Vec::new();
    let mut open: Vec<Part> = (0..shards)
        .map(|shard| Part {
            shard,
            ..Part::default()
        })
        .collect();
    let piece = limits.answers.min(limits.ids - (max_n - 1));
    let (mut from, mut position) = (0, 0);
    for span in &batch.spans {
        let (context, answers) = (span.context as usize, span.answers as usize);
        let ids = &batch.ids[from..from + context + answers];
        for start in (0..answers).step_by(piece) {
            let end = (start + piece).min(answers);
            let first = (context + start).saturating_sub(max_n - 1);
            let window = &ids[first..context + end];
            let context = context + start - first;
            let mut owners: Vec<u32> = (context..window.len())
                .filter_map(|at| owner(&window[..=at], shards))
                .collect();
            owners.sort_unstable();
            owners.dedup();
            for shard in owners {
                let part = &mut open[shard as usize];
                if !part.spans.is_empty() && !part.has_room(window.len(), end - start, limits) {
                    done.push(std::mem::take(part));
                    part.shard = shard;
                }
                part.push(window, context, position + start..position + end);
            }
        }
        from += ids.len();
        position += answers;
    }
    done.extend(open.into_iter().filter(|part| !part.spans.is_empty()));
    if let Some(trace) = batch.trace {
        done.iter_mut()
            .for_each(|part| part.trace = Some(trace.span));
    }
    done
}

/// Checks an answer in full, so that nothing of a bad one is used.
pub(crate) fn check(part: &Part, rows: &LookupRows, facts: &TableFacts) -> Result<(), String> {
    if rows.table_id != facts.table_id {
        let (got, expected) = (&rows.table_id, &facts.table_id);
        return Err(format!("table_id is {got}, expected {expected}"));
    }
    let answers = part.answers();
    if rows.match_lengths.len() != answers {
        let got = rows.match_lengths.len();
        return Err(format!("match_lengths has {got} bytes, expected {answers}"));
    }
    let mut matched = 0;
    for ((_, ids), &length) in part.windows().zip(&rows.match_lengths) {
        if length == 0 {
            continue;
        }
        let most = ids.len().min(facts.max_n as usize);
        if length < 2 || length as usize > most {
            return Err(format!(
                "a match length is {length}, allowed is 2 to {most}"
            ));
        }
        if owner(ids, facts.shard_count) != Some(part.shard) {
            return Err(format!(
                "shard {} answered another shard's position",
                part.shard
            ));
        }
        matched += 1;
    }
    let row_bytes = facts.dtype.row_bytes(facts.dim as usize);
    let (count, rest) = (rows.rows.len() / row_bytes, rows.rows.len() % row_bytes);
    if rest != 0 {
        let got = rows.rows.len();
        return Err(format!(
            "rows has {got} bytes, not a multiple of {row_bytes}"
        ));
    }
    let dim = facts.dim as usize;
    let mut each = rows.rows.chunks_exact(row_bytes);
    if let Some(row) = each.position(|row| !facts.dtype.is_finite(row, dim)) {
        return Err(format!("row {row} has an element that is not finite"));
    }
    if rows.row_index.is_empty() {
        if count != matched {
            return Err(format!(
                "rows has {count} rows for {matched} matched positions"
            ));
        }
    } else if rows.row_index.len() != matched {
        let got = rows.row_index.len();
        return Err(format!(
            "row_index has {got} entries for {matched} matched positions"
        ));
    } else if let Some(index) = rows.row_index.iter().find(|&&i| i as usize >= count) {
        return Err(format!("row_index has {index}, rows has {count} rows"));
    }
    Ok(())
}

/// Notes where the rows of a checked answer are; nothing is copied.
pub(crate) fn merge(part: &Part, rows: LookupRows, facts: &TableFacts, out: &mut Answers) {
    let message = out.add_rows(rows.rows, facts.dtype, facts.dim as usize);
    let mut matched = 0;
    let positions = part.positions.iter().cloned().flatten();
    for (position, &length) in positions.zip(&rows.match_lengths) {
        if length == 0 {
            continue;
        }
        let row = rows.row_index.get(matched as usize).copied();
        out.matched(position, length, message, row.unwrap_or(matched));
        matched += 1;
    }
}
