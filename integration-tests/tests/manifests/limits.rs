//! The bounds that docs/limits.md states: are they those that the programs have?

use std::fs;

use crate::{help::help, render::root};

/// Flags of a cell such as "`--max-connections` (1,024; 64 of the metrics port)", with the first of what
/// is said of each in brackets, as it is typed: `1024`.
fn stated(cell: &str) -> Vec<(String, String)> {
    let flags = cell.split("`--").skip(1).filter_map(|text| {
        let (flag, rest) = text.split_once('`')?;
        let (said, _) = rest.strip_prefix(" (")?.split_once(')')?;
        let first = said.split(';').next().unwrap_or_default();
        let typed = first.chars().filter(|c| !c.is_whitespace() && *c != ',');
        Some((format!("--{flag}"), typed.collect()))
    });
    flags.collect()
}

#[test]
fn what_is_said_of_flags_is_read_out_of_cells() {
    let cell = "`--a` (1,024; 64 of others), `--b-c` (64 MiB) and `--d`, also `--e` (half of both)";
    let of = |flag: &str, said: &str| (flag.to_owned(), said.to_owned());
    let expected = [
        of("--a", "1024"),
        of("--b-c", "64MiB"),
        of("--e", "halfofboth"),
    ];
    assert_eq!(stated(cell), expected);
}

#[test]
fn the_limits_in_the_docs_are_the_defaults_in_the_help() {
    let text = fs::read_to_string(root().join("../docs/limits.md")).unwrap();
    let (mut program, mut checked) = (None, 0);
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let programs = ["decoder-service", "embed-service"];
            program = programs.into_iter().find(|program| *program == heading);
        }
        let (Some(program), Some(row)) = (program, line.strip_prefix("| ")) else {
            continue;
        };
        for (flag, said) in stated(row.split(" | ").nth(1).unwrap_or_default()) {
            let help = help(program, "serve").unwrap();
            assert!(help.flags.contains(&flag), "{program} has no {flag}");
            // What depends on other flags has no number of its own, and no default either.
            let number = said.starts_with(|c: char| c.is_ascii_digit());
            let expected = number.then_some(&said);
            assert_eq!(help.defaults.get(&flag), expected, "{program} {flag}");
            checked += 1;
        }
    }
    assert!(checked > 15, "only {checked} limits were found");
}
