//! Values people type: sizes in bytes and durations, with units.

use std::time::Duration;

const BYTE_UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

const DURATION_UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

/// Parses a size such as `64MiB`, `1.5GB` or `4096` (bytes). For clap's `value_parser`.
///
/// # Errors
/// Says what is wrong and which units there are.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    parse_with_units(text, &BYTE_UNITS)
        .ok_or_else(|| "expected a size such as 64MiB, 1.5GB or 4096 (bytes)".to_owned())
}

/// Parses a duration such as `25s`, `500ms` or `2m`. For clap's `value_parser`.
///
/// # Errors
/// Says what is wrong and which units there are. A number without a unit is refused.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    parse_with_units(text, &DURATION_UNITS)
        .map(Duration::from_millis)
        .ok_or_else(|| "expected a duration such as 25s, 500ms, 2m or 1h".to_owned())
}

/// Number times unit, or `None` when either is unknown or the product is not below 2^63.
fn parse_with_units(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = (&text[..split], text[split..].trim());
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(*scale).filter(|v| *v < 1 << 63);
    }
    let value = number.parse::<f64>().ok()? * *scale as f64;
    (value.is_finite() && value < (1_u64 << 63) as f64).then_some(value.round() as u64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("64MiB", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1.5GB", 1_500_000_000),
            ("0.5KiB", 512),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for text in [
            "",
            "MiB",
            "-1",
            "1.2.3MiB",
            "64Mib",
            "64 parsecs",
            "99999999TiB",
            "1e9",
        ] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in [
            ("0s", 0),
            ("25s", 25_000),
            ("500ms", 500),
            ("2m", 120_000),
            ("0.5s", 500),
        ] {
            assert_eq!(
                parse_duration(text).unwrap(),
                Duration::from_millis(ms),
                "{text}"
            );
        }
        for text in ["", "25", "s", "-1s", "1 fortnight"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
