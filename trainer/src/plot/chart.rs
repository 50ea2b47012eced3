//! Line charts, one below the other, as SVG.

use std::fmt::Write as _;

/// One line of a chart.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) name: String,
    /// x and y.
    pub(super) points: Vec<(f64, f64)>,
}

/// Lines with axes of their own.
#[derive(Debug, Clone)]
pub(super) struct Chart {
    title: &'static str,
    lines: Vec<Line>,
    zero_based: bool,
}

impl Chart {
    pub(super) fn new(title: &'static str, lines: Vec<Line>) -> Self {
        Self {
            title,
            lines,
            zero_based: false,
        }
    }

    /// The y axis begins at 0.
    pub(super) fn zero_based(mut self) -> Self {
        self.zero_based = true;
        self
    }
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 34.0;
/// Height of a name in the legend.
const NAME: f64 = 18.0;

/// Told apart by most eyes, also in grey.
const COLOURS: [&str; 8] = [
    "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f",
];

/// The charts below a legend; `x` names their common axis.
pub(super) fn svg(charts: &[Chart], x: &str) -> String {
    let names: Vec<&str> = charts.first().map_or(Vec::new(), |c| {
        c.lines.iter().map(|l| l.name.as_str()).collect()
    });
    let legend = NAME * names.len() as f64 + 10.0;
    let height = legend + HEIGHT * charts.len() as f64;
    let mut out = page(WIDTH, height);
    for (i, name) in names.iter().enumerate() {
        let y = NAME * i as f64 + 16.0;
        let _ = writeln!(
            out,
            "<rect x=\"{LEFT}\" y=\"{}\" width=\"14\" height=\"4\" fill=\"{}\"/>\
             <text x=\"{}\" y=\"{y}\">{}</text>",
            y - 6.0,
            colour(i),
            LEFT + 20.0,
            escaped(name)
        );
    }
    for (i, chart) in charts.iter().enumerate() {
        draw(&mut out, chart, x, legend + HEIGHT * i as f64);
    }
    out.push_str("</svg>\n");
    out
}

/// The beginning of a picture on white.
pub(super) fn page(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    )
}

pub(super) fn colour(i: usize) -> &'static str {
    COLOURS[i % COLOURS.len()]
}

pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// One chart whose upper edge is at `top`.
fn draw(out: &mut String, chart: &Chart, x_name: &str, top: f64) {
    let all = || chart.lines.iter().flat_map(|line| &line.points);
    let x = Scale::new(all().map(|p| p.0), true, (LEFT, WIDTH - RIGHT));
    let range = (top + HEIGHT - BOTTOM, top + TOP);
    let y = Scale::new(all().map(|p| p.1), chart.zero_based, range);
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}</text>\
         <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{x_name}</text>",
        top + TOP - 10.0,
        escaped(chart.title),
        WIDTH - RIGHT,
        top + HEIGHT - 4.0
    );
    for tick in x.ticks() {
        let at = x.place(tick);
        let _ = writeln!(
            out,
            "<line x1=\"{at:.1}\" y1=\"{:.1}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#eee\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            range.0,
            range.1,
            range.0 + 15.0,
            label(tick)
        );
    }
    for tick in y.ticks() {
        let at = y.place(tick);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            label(tick)
        );
    }
    for (i, line) in chart.lines.iter().enumerate() {
        let finite = line.points.iter().filter(|p| p.1.is_finite());
        let points: Vec<String> = finite
            .map(|p| format!("{:.1},{:.1}", x.place(p.0), y.place(p.1)))
            .collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"/>",
            points.join(" "),
            colour(i)
        );
    }
}

/// From numbers to places on the page.
struct Scale {
    low: f64,
    high: f64,
    step: f64,
    page: (f64, f64),
}

impl Scale {
    fn new(values: impl Iterator<Item = f64>, zero_based: bool, page: (f64, f64)) -> Self {
        let finite = values.filter(|value| value.is_finite());
        let (mut low, mut high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| {
            (a.min(v), b.max(v))
        });
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if zero_based {
            low = low.min(0.0);
        }
        if high - low < 1e-9 {
            high = low + 1.0;
        }
        let step = round_step((high - low) / 5.0);
        Self {
            low: (low / step).floor() * step,
            high: (high / step).ceil() * step,
            step,
            page,
        }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        self.page.0 + share * (self.page.1 - self.page.0)
    }

    fn ticks(&self) -> Vec<f64> {
        let count = ((self.high - self.low) / self.step).round() as usize;
        (0..=count)
            .map(|i| self.low + self.step * i as f64)
            .collect()
    }
}

/// The next of 1, 2 or 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|factor| factor * power >= step * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// A number in few characters: `2.5M`, `300k`, `3.85`.
fn label(value: f64) -> String {
    let short = |value: f64| {
        let text = format!("{value:.3}");
        let text = text.trim_end_matches('0').trim_end_matches('.');
        if text == "-0" { "0" } else { text }.to_owned()
    };
    match value.abs() {
        size if size >= 1e9 => format!("{}G", short(value / 1e9)),
        size if size >= 1e6 => format!("{}M", short(value / 1e6)),
        size if size >= 1e4 => format!("{}k", short(value / 1e3)),
        _ => short(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_on_round_numbers_around_all_values() {
        let scale = Scale::new([3.13, 4.87].into_iter(), false, (0.0, 100.0));
        assert_eq!((scale.low, scale.high, scale.step), (3.0, 5.0, 0.5));
        assert_eq!(scale.ticks(), [3.0, 3.5, 4.0, 4.5, 5.0]);
        assert_eq!(scale.place(4.0), 50.0);
        let flat = Scale::new([7.0].into_iter(), true, (0.0, 1.0));
        assert!(flat.low == 0.0 && flat.high >= 7.0);
        let none = Scale::new([f64::NAN].into_iter(), false, (0.0, 1.0));
        assert!(none.place(0.5).is_finite());
    }

    #[test]
    fn labels_are_short() {
        let labels = [0.0, 3.85, 9000.0, 25_000.0, 2.5e6, 1e9].map(label);
        assert_eq!(labels, ["0", "3.85", "9000", "25k", "2.5M", "1G"]);
    }
}
