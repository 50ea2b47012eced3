//! What was measured, for people and for programs.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::Duration,
};

use scone_proto::embed::v1::{GetTableInfoResponse, LookupResponse, LookupRows, lookup_response};
use serde_json::json;
use tonic::Code;

use super::args::{Draw, LoadArgs, Shape};

/// Answers of one or all streams.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// How long the answers with rows took, in microseconds.
    took_us: Vec<u32>,
    /// Answers that were refusals, by gRPC code.
    errors: BTreeMap<i32, u64>,
    positions: u64,
    matched: u64,
    row_bytes: u64,
    /// How long was measured.
    pub seconds: f64,
}

impl Measured {
    /// Answers counted so far.
    pub(super) fn requests(&self) -> u64 {
        self.took_us.len() as u64 + self.errors.values().sum::<u64>()
    }

    pub(super) fn count(&mut self, took: Duration, response: LookupResponse) {
        let code = outcome(&response);
        let Some(lookup_response::Result::Rows(LookupRows {
            match_lengths,
            rows,
            ..
        })) = response.result
        else {
            *self.errors.entry(code as i32).or_default() += 1;
            return;
        };
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.took_us.push(took);
        self.positions += match_lengths.len() as u64;
        self.matched += match_lengths.iter().filter(|&&n| n > 0).count() as u64;
        self.row_bytes += rows.len() as u64;
    }

    pub(super) fn add(&mut self, other: Self) {
        self.took_us.extend(other.took_us);
        for (code, count) in other.errors {
            *self.errors.entry(code).or_default() += count;
        }
        self.positions += other.positions;
        self.matched += other.matched;
        self.row_bytes += other.row_bytes;
    }
}

/// The results, ready to print.
#[derive(Debug)]
pub(super) struct Report {
    case: String,
    /// Metric, value, unit.
    results: Vec<(String, f64, &'static str)>,
}

impl Report {
    pub(super) fn new(
        args: &LoadArgs,
        shape: Shape,
        info: &GetTableInfoResponse,
        mut measured: Measured,
    ) -> Self {
        measured.took_us.sort_unstable();
        let took = |share: f64| f64::from(percentile(&measured.took_us, share));
        let a_second = |count: u64| count as f64 / measured.seconds;
        // The distinct rows that travelled; a repeated row of one answer travels once.
        let rows = measured.row_bytes / u64::from(info.row_bytes.max(1));
        let mut results = vec![
            ("p50".to_owned(), took(0.5), "us"),
            ("p90".to_owned(), took(0.9), "us"),
            ("p99".to_owned(), took(0.99), "us"),
            ("max".to_owned(), took(1.0), "us"),
            (
                "requests".to_owned(),
                a_second(measured.took_us.len() as u64),
                "requests/s",
            ),
            (
                "positions".to_owned(),
                a_second(measured.positions),
                "positions/s",
            ),
            ("rows".to_owned(), a_second(rows), "rows/s"),
            (
                "row_bytes".to_owned(),
                a_second(measured.row_bytes) / 1e6,
                "MB/s",
            ),
            (
                "matched".to_owned(),
                100.0 * measured.matched as f64 / measured.positions.max(1) as f64,
                "%",
            ),
        ];
        let errors: u64 = measured.errors.values().sum();
        results.push(("errors".to_owned(), errors as f64, "requests"));
        for (code, count) in &measured.errors {
            let code = tonic::Code::from(*code);
            results.push((format!("errors_{code:?}"), *count as f64, "requests"));
        }
        let case = case(args, shape, info);
        Self { case, results }
    }

    /// One JSON object a line.
    pub(super) fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        for (metric, value, unit) in &self.results {
            let line = json!({
                "bench": "load",
                "case": self.case,
                "subject": "embed-service",
                "metric": metric,
                "value": value,
                "unit": unit,
            });
            writeln!(out, "{line}")?;
        }
        Ok(())
    }

    pub(super) fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{}", self.case)?;
        for (metric, value, unit) in &self.results {
            writeln!(out, "  {metric:24} {value:>14.1} {unit}")?;
        }
        Ok(())
    }
}

fn case(args: &LoadArgs, shape: Shape, info: &GetTableInfoResponse) -> String {
    let shape = match shape {
        Shape::Windows(windows) => format!("windows={windows}"),
        Shape::Prompt(positions) => format!("prompt_positions={positions}"),
    };
    let draw = match (&args.ids, args.draw) {
        (Some(_), _) => "ids",
        (None, Draw::Zipf) => "zipf",
        (None, Draw::Uniform) => "uniform",
    };
    format!(
        "{shape} streams={} store={} rows={} row_bytes={} draw={draw}",
        args.streams, info.store, info.rows, info.row_bytes
    )
}

/// The smallest value that at least this share of the sorted values does not exceed; 0 of none.
fn percentile(sorted: &[u32], share: f64) -> u32 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// The code of an answer; an answer without a result is a fault of the server.
fn outcome(response: &LookupResponse) -> Code {
    match &response.result {
        Some(lookup_response::Result::Rows(_)) => Code::Ok,
        Some(lookup_response::Result::Error(error)) => error.code.into(),
        None => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<u32> = (1..=100).collect();
        assert_eq!(percentile(&values, 0.5), 50);
        assert_eq!(percentile(&values, 0.99), 99);
        assert_eq!(percentile(&values, 1.0), 100);
        assert_eq!(percentile(&[7], 0.5), 7);
        assert_eq!(percentile(&[], 0.5), 0);
    }
}
