//! What hostile guests try, and what stops them.
//!
//! Each case is a test: it has a sandbox of its own on a server that all share, does its worst
//! there, and looks at what came of it. Afterwards everything around must be as before: the
//! server, this sandbox's init, another sandbox, the host. The cases are a table too, which
//! `docs/security.md` shows; a test below keeps the two alike.
//!
//! `attack.c` holds what needs raw system calls. It is compiled once per run with gcc.

mod arena;
mod case;

mod calls;
mod files;
mod init;
mod leaks;
mod mounts;
mod neighbours;
mod network;
mod privileges;
mod processes;
mod resources;
mod session;

use std::fmt::Write as _;

use case::Case;

/// Headings of the table, and the cases below each.
const CHAPTERS: &[(&str, &[Case])] = &[
    ("Mounts, devices and kernel files", mounts::CASES),
    ("init", init::CASES),
    ("System calls", calls::CASES),
    ("Privileges", privileges::CASES),
    ("Network", network::CASES),
    ("Leaks", leaks::CASES),
    ("Resources", resources::CASES),
    ("File requests", files::CASES),
    ("Sessions", session::CASES),
    ("Processes", processes::CASES),
    ("Other sandboxes and resets", neighbours::CASES),
];

/// Lines of `docs/security.md` that enclose the table.
const MARKS: [&str; 2] = ["<!-- hostile cases -->\n", "<!-- end of hostile cases -->\n"];

fn table() -> String {
    let mut table = String::new();
    for (chapter, cases) in CHAPTERS {
        let head = "| case | tries | stopped by |\n| --- | --- | --- |\n";
        let _ = write!(table, "\n### {chapter}\n\n{head}");
        for case in *cases {
            let name = case.name.replace('_', " ");
            let _ = writeln!(table, "| {name} | {} | {} |", case.tries, case.stopped_by);
        }
    }
    table.push('\n');
    table
}

#[test]
fn the_security_page_lists_exactly_these_cases() {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").expect("CARGO_MANIFEST_DIR");
    let page = std::path::Path::new(&manifest).join("../../docs/security.md");
    let text = std::fs::read_to_string(&page).expect("docs/security.md");
    let (before, rest) = text.split_once(MARKS[0]).expect("the mark before the table");
    let (_, after) = rest.split_once(MARKS[1]).expect("the mark behind the table");
    let wanted = [before, MARKS[0], &table(), MARKS[1], after].concat();
    if std::env::var_os("FORKYARD_WRITE_DOCS").is_some() {
        std::fs::write(&page, wanted).expect("write docs/security.md");
        return;
    }
    assert!(
        text == wanted,
        "docs/security.md and the cases differ; this writes the page:\n\
         FORKYARD_WRITE_DOCS=1 cargo test -p forkyard --test hostile security_page"
    );
}

#[test]
fn there_are_at_least_forty_cases_each_with_a_name_of_its_own() {
    let mut names: Vec<_> =
        CHAPTERS.iter().flat_map(|(_, cases)| cases.iter().map(|case| case.name)).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
    assert!(all >= 40, "{all} cases");
}
