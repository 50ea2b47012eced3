//! Bars side by side, in groups, as SVG.

use std::fmt::Write as _;

use super::chart::{colour, escaped, page};

/// Bars that belong together.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) name: String,
    /// One a name; what is no number is left out.
    pub(crate) values: Vec<f64>,
}

const BAR: f64 = 34.0;
const GAP: f64 = 28.0;
const HEIGHT: f64 = 260.0;
const NAME: f64 = 18.0;
const LEFT: f64 = 16.0;

/// One group after the other, each with a bar for each of `names`. The axis begins a little below the
/// smallest value, so that small differences show; every bar has its value above it.
pub(crate) fn bars(title: &str, names: &[&str], groups: &[Group]) -> String {
    let finite = || {
        groups
            .iter()
            .flat_map(|g| &g.values)
            .filter(|v| v.is_finite())
    };
    let high = finite().copied().fold(f64::NEG_INFINITY, f64::max);
    let low = finite().copied().fold(f64::INFINITY, f64::min);
    let floor = low - (high - low).max(1e-3 * low.abs()) * 0.5;
    let top = NAME * names.len() as f64 + 60.0;
    let (height, bottom) = (top + HEIGHT + 40.0, top + HEIGHT);
    let of_group = BAR * names.len() as f64 + GAP;
    let width = (LEFT * 2.0 + of_group * groups.len() as f64).max(420.0);
    let mut out = page(width, height);
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"18\" font-weight=\"bold\">{}; the axis begins at {floor:.3}</text>",
        escaped(title)
    );
    for (i, name) in names.iter().enumerate() {
        let y = 40.0 + NAME * i as f64;
        let _ = writeln!(
            out,
            "<rect x=\"{LEFT}\" y=\"{}\" width=\"14\" height=\"10\" fill=\"{}\"/>\
             <text x=\"{}\" y=\"{y}\">{}</text>",
            y - 10.0,
            colour(i),
            LEFT + 20.0,
            escaped(name)
        );
    }
    for (i, group) in groups.iter().enumerate() {
        let left = LEFT + of_group * i as f64;
        for (j, value) in group
            .values
            .iter()
            .enumerate()
            .filter(|(_, v)| v.is_finite())
        {
            let (x, size) = (
                left + BAR * j as f64,
                (value - floor) / (high - floor) * (HEIGHT - 20.0),
            );
            let y = bottom - size;
            let _ = writeln!(
                out,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{}\" height=\"{size:.1}\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"10\">{value:.3}</text>",
                BAR - 4.0,
                colour(j),
                x + BAR / 2.0 - 2.0,
                y - 4.0
            );
        }
        let middle = left + BAR * group.values.len() as f64 / 2.0;
        let _ = writeln!(
            out,
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 18.0,
            escaped(&group.name)
        );
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_that_is_a_number_has_a_bar() {
        let groups = [
            Group {
                name: "books & more".to_owned(),
                values: vec![3.5, 3.4],
            },
            Group {
                name: "wiki".to_owned(),
                values: vec![3.6, f64::NAN],
            },
        ];
        let svg = bars("nats/token", &["plain", "SCONE"], &groups);
        // A page, two names and three bars.
        assert_eq!(svg.matches("<rect").count(), 6);
        assert!(svg.contains("books &amp; more") && svg.contains(">3.400<"));
        let nothing = bars("nats/token", &[], &[]);
        assert!(nothing.ends_with("</svg>\n"));
    }
}
