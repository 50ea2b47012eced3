//! Amounts of resources, as Kubernetes writes them.

/// The number behind `500m`, `2`, `1Gi` or `1e3`; `None` for anything else.
pub(crate) fn parse(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let (digits, suffix) = match text[digits.len()..].chars().next() {
        // `1e3` has its digits behind the letter.
        _ if text.parse::<f64>().is_ok() => (text, ""),
        _ => (digits, &text[digits.len()..]),
    };
    let factor = match suffix {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024_f64.powi(2),
        "Gi" => 1024_f64.powi(3),
        "Ti" => 1024_f64.powi(4),
        _ => return None,
    };
    digits.parse::<f64>().ok().map(|number| number * factor)
}

/// Seconds of a duration with a unit, as the programs take them.
pub(crate) fn seconds(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    digits.parse::<f64>().ok().map(|number| number * factor)
}

#[test]
fn quantities_have_suffixes() {
    for (text, value) in [
        ("500m", 0.5),
        ("2", 2.0),
        ("1e3", 1000.0),
        ("1Gi", 1_073_741_824.0),
    ] {
        assert_eq!(parse(text), Some(value), "{text}");
    }
    for text in ["", "Gi", "1gb", "one"] {
        assert_eq!(parse(text), None, "{text}");
    }
    assert_eq!(seconds("10m"), Some(600.0));
    assert_eq!(seconds("10"), None);
}
