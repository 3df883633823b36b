//! Runs every command that README.md and the pages below docs/ show.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use forkyard_testkit::docs::{Block, Step, elsewhere, extract, output_matches};
use forkyard_testkit::{TestServer, binary, find_program, finish_within, print_skip};

/// Set to `1` to run the blocks tagged `network` too.
const NETWORK: &str = "FORKYARD_DOCS_NETWORK";

/// For all commands of one document.
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn every_command_in_the_documents_runs() {
    let root = repository();
    let documents = documents(&root);
    assert!(!documents.is_empty(), "no README.md and no docs/ in {}", root.display());
    let mut skipped = Vec::new();
    let failures: Vec<String> = documents
        .iter()
        .filter_map(|path| {
            let name = path.strip_prefix(&root).unwrap_or(path).display().to_string();
            let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("read {name}: {e}"));
            let outcome = extract(&text)
                .map_err(|error| error.to_string())
                .and_then(|blocks| run(&name, &blocks, &mut skipped));
            outcome.err().map(|why| format!("{name}: {why}"))
        })
        .collect();
    if !skipped.is_empty() {
        print_skip("docs::every_command_in_the_documents_runs", &skipped.join("; "));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn a_command_that_fails_is_told_with_its_line_and_output() {
    let dir = tempfile::tempdir().unwrap();
    let blocks = extract("```console\n$ X=1\n$ echo \"$X\"; false\n$ touch never\n```\n").unwrap();
    let why = run_in(dir.path(), &blocks, &mut std::process::Command::new("bash")).unwrap_err();
    assert!(why.starts_with("line 3: `echo \"$X\"; false` exits with 1, not 0\n1\n"), "{why}");
    assert!(!dir.path().join("never").exists(), "{why}");
}

#[test]
fn output_that_differs_is_told_and_codes_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let run = |text: &str| {
        run_in(dir.path(), &extract(text).unwrap(), &mut std::process::Command::new("bash"))
    };
    assert_eq!(run("```console expect\n$ (exit 3)\n# exits 3\n$ echo a b\na ...\n```\n"), Ok(()));
    assert!(run("```console expect\n$ echo a\nb\n```\n").unwrap_err().starts_with("line 2: "));
    assert!(run("```console\n$ exit 0\n```\n").unwrap_err().contains("ended the shell"));
    assert!(run("```console\n$ if\n```\n").unwrap_err().contains("syntax error"));
}

#[test]
fn every_link_between_the_documents_leads_somewhere() {
    let root = repository();
    let mut broken = Vec::new();
    let others = ["ARCHITECTURE.md", "SPECIFICATION.md", "CONTRIBUTING.md", "CHANGELOG.md"];
    for path in documents(&root).into_iter().chain(others.map(|name| root.join(name))) {
        let text = fs::read_to_string(&path).unwrap_or_default();
        for link in links(&text) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap_or(&root).join(file),
            };
            let there = match fs::read_to_string(&target) {
                Ok(text) if !anchor.is_empty() => anchors(&text).any(|found| found == anchor),
                _ => target.exists(),
            };
            if !there {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

#[test]
fn the_page_of_the_api_shows_every_route() {
    let root = repository();
    let read = |path| fs::read_to_string(root.join(path)).expect(path);
    let (routes, page) = (read("crates/api/src/routes.rs"), read("docs/api.md"));
    let table = routes.lines().filter_map(|line| line.strip_prefix("//! | `"));
    let named: Vec<&str> = table.filter_map(|row| row.split(['`', '?']).next()).collect();
    assert!(named.len() > 30, "only {} routes were found", named.len());
    let shown = |route: &str| ['`', '?'].iter().any(|end| page.contains(&format!("`{route}{end}")));
    let missing: Vec<&&str> = named.iter().filter(|route| !shown(route)).collect();
    assert!(missing.is_empty(), "docs/api.md lacks {missing:?}");
}

/// Targets of inline links that are not addresses elsewhere.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link).filter(
        |link| !link.contains("://") && !link.contains(char::is_whitespace) && !link.is_empty(),
    )
}

/// Anchors of a text's headings, as the usual renderers make them.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter(|line| line.starts_with('#')).map(|line| {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    })
}

#[test]
fn links_and_anchors_are_read_as_renderers_read_them() {
    let text = "[a](b.md#c) [x](https://h/y) `[i](j k)` ![p](q.svg)";
    assert_eq!(links(text).collect::<Vec<_>>(), ["b.md#c", "q.svg"]);
    let found: Vec<String> = anchors("# A `b`, c-d\ntext\n## 1. Two\n").collect();
    assert_eq!(found, ["a-b-c-d", "1-two"]);
}

/// The root of the source tree. Cargo tells where the package is, and so does `./test`, which runs
/// this from a copy.
fn repository() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| std::env::current_dir().expect("a working directory"), PathBuf::from);
    let above = package.ancestors().find(|dir| dir.join("Cargo.lock").is_file());
    above.unwrap_or_else(|| panic!("no Cargo.lock above {}", package.display())).to_owned()
}

/// README.md and all Markdown below docs/, sorted.
fn documents(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.join("README.md")];
    let mut unread = vec![root.join("docs")];
    while let Some(dir) = unread.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                unread.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found.retain(|path| path.is_file());
    found.sort();
    found
}

/// Runs the commands of one document against a server of its own; blocks that are left out, and
/// why, go to `skipped`.
fn run(name: &str, blocks: &[Block], skipped: &mut Vec<String>) -> Result<(), String> {
    let network = std::env::var_os(NETWORK).is_some_and(|value| value == "1");
    let mut here = Vec::new();
    for block in blocks {
        if block.network && !network {
            let what = format!("{name}:{} needs the network ({NETWORK}=1 runs it)", block.line);
            skipped.push(what);
            continue;
        }
        let mut block = block.clone();
        block.steps.retain(|step| elsewhere(&step.command).is_none());
        here.push(block);
    }
    if here.iter().all(|block| block.steps.is_empty()) {
        return Ok(());
    }
    let server = TestServer::start();
    here.retain(|block| match block.needs.iter().find(|need| !has(&server, need)) {
        None => true,
        Some(need) => {
            skipped.push(format!("{name}:{} needs {need}", block.line));
            false
        }
    });
    let home = server.dir().join("home");
    fs::create_dir(&home).map_err(|error| format!("make {}: {error}", home.display()))?;
    // Beside the real program lie the test executables; only the program shall be found.
    let bin = server.dir().join("bin");
    fs::create_dir(&bin)
        .and_then(|()| std::os::unix::fs::symlink(binary(), bin.join("forkyard")))
        .map_err(|error| format!("link the program: {error}"))?;
    // Ended with the command that hangs, which is then the one without an exit code.
    let mut shell = server.prepare("timeout");
    shell.args(["-k", "5", &LIMIT.as_secs().to_string(), "bash"]);
    let path = std::env::var("PATH").unwrap_or_default();
    shell.env("HOME", &home).env("PATH", format!("{}:{path}", bin.display()));
    run_in(&home, &here, &mut shell)
}

/// Whether there is what a block needs: limits on sandboxes, more ids than one, or a program.
fn has(server: &TestServer, need: &str) -> bool {
    match need {
        "limits" => {
            let limits = ["--memory", "64m", "--cpus", "1", "--pids", "64"];
            let out = server.cli(&[&["run"], &limits[..], &["--", "true"]].concat());
            // Any other failure is for the block itself to show.
            !String::from_utf8_lossy(&out.stderr).contains("limits need")
        }
        "ids" => !server.get("/v1/health").1.windows(8).any(|bytes| bytes == b"\"single\""),
        program => find_program(program).is_some(),
    }
}

/// Runs all commands in one shell with `dir` as working directory.
fn run_in(dir: &Path, blocks: &[Block], shell: &mut std::process::Command) -> Result<(), String> {
    let records = tempfile::tempdir().map_err(|error| format!("a temporary directory: {error}"))?;
    let steps: Vec<(&Block, &Step)> =
        blocks.iter().flat_map(|block| block.steps.iter().map(move |step| (block, step))).collect();
    let mut script = String::new();
    for (at, (_, step)) in steps.iter().enumerate() {
        let file = |suffix| records.path().join(format!("{at}.{suffix}"));
        fs::write(file("sh"), &step.command).map_err(|error| format!("write a script: {error}"))?;
        // `eval` keeps a syntax error within its own command.
        let _ = writeln!(
            script,
            "eval \"$(<'{0}')\" >'{1}' 2>&1 </dev/null; s=$?; echo $s >'{2}'; [ $s = {3} ] || exit",
            file("sh").display(),
            file("out").display(),
            file("code").display(),
            step.exit
        );
    }
    let script_file = records.path().join("script");
    fs::write(&script_file, script).map_err(|error| format!("write a script: {error}"))?;
    shell.args(["--noprofile", "--norc"]).arg(&script_file).current_dir(dir);
    finish_within(LIMIT * 2, shell.stdin(Stdio::null()), b"");

    for (at, (block, step)) in steps.iter().enumerate() {
        let read = |suffix| {
            let bytes = fs::read(records.path().join(format!("{at}.{suffix}"))).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (code, output) = (read("code"), read("out"));
        let place = format!("line {}: `{}`", step.line, step.command);
        if code.is_empty() {
            return Err(format!("{place} ended the shell, or has no end\n{output}"));
        }
        if code.trim() != step.exit.to_string() {
            return Err(format!("{place} exits with {}, not {}\n{output}", code.trim(), step.exit));
        }
        if block.expect && !output_matches(&step.output, &output) {
            let shown = step.output.join("\n");
            return Err(format!("{place} prints\n{output}where this is shown:\n{shown}"));
        }
    }
    Ok(())
}
