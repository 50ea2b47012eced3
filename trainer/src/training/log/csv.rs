//! Entries as rows of a table; what an entry has not is left empty.

use serde_json::Value;

/// The columns: keys of `log.jsonl`.
pub(super) const HEADER: &str = "step,tokens,loss,grad_norm,lr,tokens_per_s,peak_share,\
    memory_bytes,seconds,seconds_left,valid_nats_per_token,valid_bits_per_byte,valid_matched";

/// An entry as a row.
pub(super) fn line(entry: &Value) -> String {
    let cell = |key| match entry.get(key) {
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    };
    let cells: Vec<String> = HEADER.split(',').map(cell).collect();
    cells.join(",")
}

/// The step of a whole row.
pub(super) fn step_of(line: &str) -> Option<u64> {
    let whole = line.split(',').count() == HEADER.split(',').count();
    line.split(',').next().filter(|_| whole)?.parse().ok()
}
