//! Values people type: sizes in bytes and durations, with units.

use std::time::Duration;

use bytesize::ByteSize;

/// No size in bytes and no duration in milliseconds may reach this, so that sums of them fit.
const TOO_LARGE: u64 = 1 << 63;

/// Parses a size such as `64MiB`, `1.5GB` or `4096` (bytes). For clap's `value_parser`.
///
/// # Errors
/// Says what is expected, for anything else and for sizes of 2^63 bytes and more.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let size = text.trim().parse().ok().map(|size: ByteSize| size.as_u64());
    size.filter(|&bytes| bytes < TOO_LARGE)
        .ok_or_else(|| "expected a size such as 64MiB, 1.5GB or 4096 (bytes)".to_owned())
}

/// Parses a duration such as `25s`, `500ms` or `2m`. For clap's `value_parser`.
///
/// # Errors
/// Says what is expected, for anything else. A number without a unit is refused, but for 0.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text.trim()).ok();
    duration
        .filter(|duration| duration.as_millis() < u128::from(TOO_LARGE))
        .ok_or_else(|| "expected a duration such as 25s, 500ms, 2m or 1h".to_owned())
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
            ("64kB", 64_000),
            // Nobody means bits.
            ("64Mib", 64 << 20),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for text in [
            "",
            "MiB",
            "-1",
            "1.2.3MiB",
            "64 parsecs",
            "99999999TiB",
            "9223372036854775808",
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
            ("0", 0),
            ("1h 30m", 5_400_000),
        ] {
            assert_eq!(
                parse_duration(text).unwrap(),
                Duration::from_millis(ms),
                "{text}"
            );
        }
        for text in ["", "25", "s", "-1s", "1 fortnight", "3000000000000h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
