//! Checks that what SPECIFICATION.md names as holding its promises exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use forkyard_testkit::docs::output_matches;

#[test]
fn every_promise_names_tests_and_rows_that_exist() {
    let root = repository();
    let text = fs::read_to_string(root.join("SPECIFICATION.md")).expect("SPECIFICATION.md");
    let rows = bench_rows(&root);
    let mut wrong = Vec::new();
    let mut numbers = BTreeSet::new();
    for line in text.lines() {
        let references: Vec<&str> = references(line).collect();
        let missing = references.iter().filter(|reference| !exists(&root, &rows, reference));
        wrong.extend(missing.map(|reference| format!("no such test or row: {reference}")));
        if let Some(number) = number(line) {
            if references.is_empty() {
                wrong.push(format!("{number} names nothing that holds it"));
            }
            if !numbers.insert(number.to_owned()) {
                wrong.push(format!("{number} is there twice"));
            }
        }
    }
    assert!(numbers.len() > 50, "only {} numbered promises were found", numbers.len());
    assert!(wrong.is_empty(), "SPECIFICATION.md:\n{}", wrong.join("\n"));
}

#[test]
fn what_does_not_exist_is_found_out() {
    let root = repository();
    let rows = bench_rows(&root);
    let there = |reference| exists(&root, &rows, reference);
    assert!(there("testkit/tests/spec::what_does_not_exist_is_found_out"));
    assert!(!there("testkit/tests/spec::repository"), "not a test");
    assert!(!there("testkit/tests/spec::what_does_not_exist"), "the start of a name");
    assert!(!there("testkit/tests/nowhere::what_does_not_exist_is_found_out"));
    assert!(there("bench: reset"));
    assert!(there("bench: 32 whole lives at once"));
    assert!(!there("bench: whole"));
    assert!(there("./test"));
    let line = "| 1.2 | `x` does `y::z` | `a/b::c`<br>`bench: d` |";
    assert_eq!(references(line).collect::<Vec<_>>(), ["a/b::c", "bench: d"]);
    assert_eq!(number(line), Some("1.2"));
    assert_eq!(number("| | promise | held by |"), None);
}

/// The root of the source tree; see `docs.rs`.
fn repository() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| std::env::current_dir().expect("a working directory"), PathBuf::from);
    let above = package.ancestors().find(|dir| dir.join("Cargo.lock").is_file());
    above.unwrap_or_else(|| panic!("no Cargo.lock above {}", package.display())).to_owned()
}

/// The number at the start of a promise's row.
fn number(line: &str) -> Option<&str> {
    let number = line.strip_prefix("| ")?.split(' ').next()?;
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    number.split_once('.').filter(|(a, b)| digits(a) && digits(b)).map(|_| number)
}

/// What a promise's row has in backticks in its last column.
fn references(line: &str) -> impl Iterator<Item = &str> {
    let column = number(line).and_then(|_| line.trim_end_matches(" |").rsplit(" | ").next());
    column.unwrap_or_default().split('`').skip(1).step_by(2)
}

fn exists(root: &Path, rows: &[String], reference: &str) -> bool {
    if let Some(row) = reference.strip_prefix("bench: ") {
        return rows.iter().any(|shown| output_matches(std::slice::from_ref(shown), row));
    }
    let Some((path, name)) = reference.rsplit_once("::") else {
        return root.join(reference).is_file();
    };
    let source = root.join("crates").join(path).with_extension("rs");
    let source = fs::read_to_string(source).unwrap_or_default();
    // Hostile cases are the lines of a table that a macro makes tests of.
    let case = format!("    {name}: \"");
    let function = format!("fn {name}(");
    let lines: Vec<&str> = source.lines().collect();
    lines.iter().enumerate().any(|(at, line)| {
        let above = &lines[at.saturating_sub(4)..at];
        let is_test = || above.iter().any(|line| line.trim() == "#[test]");
        line.trim_start().starts_with(&function) && is_test() || line.starts_with(&case)
    })
}

/// The names of the benchmark's rows, as its source has them; `...` for what is filled in.
fn bench_rows(root: &Path) -> Vec<String> {
    let bench = root.join("crates/forkyard/src/bench");
    let mut files = vec![bench.with_extension("rs")];
    let mut unread = vec![bench];
    while let Some(dir) = unread.pop() {
        for entry in fs::read_dir(&dir).expect("the sources of the benchmark") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { unread.push(path) } else { files.push(path) }
        }
    }
    let mut rows = Vec::new();
    for file in files {
        let source = fs::read_to_string(&file).expect("a source of the benchmark");
        rows.extend(source.split('"').skip(1).step_by(2).map(blank));
    }
    // What is nothing but blanks would be any row.
    rows.retain(|row| row.chars().filter(|c| c.is_alphabetic()).count() > 3);
    rows
}

/// A format string with `...` in place of its braces.
fn blank(text: &str) -> String {
    let mut parts = text.split('{');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |row, part| row + "..." + part.split_once('}').map_or("", |(_, rest)| rest))
}
