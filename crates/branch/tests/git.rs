//! Patches of random changes, given to `git apply`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::path::Path;
use std::process::Command;

use forkyard_branch::{Layers, Patch, Wanted, diff};
use forkyard_testkit::{find_program, finish, skip};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use support::{File, Tree, entries, open, upper_of};

/// The patch that makes `new` of `old`, told by layers as an overlay leaves them.
fn patch(dir: &Path, old: &Tree, new: &Tree, prefix: &str) -> Vec<u8> {
    let (lower, upper) = (dir.join("lower"), dir.join("upper"));
    old.write(&lower);
    upper_of(old, new, &upper);
    let layers = Layers::new(vec![open(&upper)], vec![open(&lower)]);
    let mut text = Vec::new();
    let mut patch = Patch::new(&layers, prefix, &mut text);
    for change in diff(&layers, &Wanted::default()).unwrap() {
        patch.write(&change).unwrap();
    }
    text
}

/// What `git apply` makes of `old` with a patch.
fn applied(dir: &Path, old: &Tree, text: &[u8], options: &[&str]) -> Result<Tree, String> {
    let target = dir.join("target");
    old.write(&target);
    let mut git = Command::new("git");
    git.args(["apply", "--allow-empty", "--whitespace=nowarn"])
        .args(options)
        .arg("-")
        .current_dir(&target);
    git.env("GIT_CEILING_DIRECTORIES", dir).env("HOME", dir);
    let out = finish(&mut git, text);
    if !out.status.success() {
        let why = String::from_utf8_lossy(&out.stderr).into_owned();
        return Err(format!("{why}\n{}", String::from_utf8_lossy(text)));
    }
    Ok(Tree::read(&target).known_to_git())
}

#[test]
fn git_applies_the_patch_of_any_change_and_takes_it_back() {
    if find_program("git").is_none() {
        skip!("git");
    }
    let config = Config { cases: 96, failure_persistence: None, ..Config::default() };
    let run = TestRunner::new(config).run(&(entries(), entries()), |(old, change)| {
        // An empty directory, of which git does not know, is in its way.
        let old = old.known_to_git();
        let new = old.changed(&change);
        let dir = tempfile::tempdir().unwrap();
        let text = patch(dir.path(), &old, &new, "");
        let made = applied(dir.path(), &old, &text, &[]).map_err(TestCaseError::fail)?;
        prop_assert_eq!(&made, &new.known_to_git(), "{}", String::from_utf8_lossy(&text));
        std::fs::remove_dir_all(dir.path().join("target")).unwrap();
        let back = applied(dir.path(), &new.known_to_git(), &text, &["-R"])
            .map_err(TestCaseError::fail)?;
        // Of files that come back git forgets types and modes, of its own patches too.
        prop_assert!(back.0.keys().eq(old.0.keys()), "{}", String::from_utf8_lossy(&text));
        Ok(())
    });
    run.unwrap();
}

#[test]
fn a_patch_reads_as_git_writes_it() {
    let text = |lines: &str| File::Regular { bytes: lines.into(), executable: false };
    let lines = |changed: &str| {
        let all: Vec<String> = (1..=12).map(|n| format!("line {n}\n")).collect();
        all.concat().replace("line 6\n", changed)
    };
    let old = Tree::of(&[
        ("a b/text", text(&lines("line 6\n"))),
        ("gone", text("last\n")),
        ("from", text("moved\n")),
    ]);
    let new = Tree::of(&[
        ("a b/text", text(&lines("changed\n"))),
        ("to", text("moved\n")),
        ("link", File::Link("a b/text".into())),
        ("binary", text("\0")),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let patch = patch(dir.path(), &old, &new, "top/");
    assert_eq!(
        String::from_utf8(patch).unwrap(),
        "\
diff --git a/top/a b/text b/top/a b/text
index 624b469cb073d1245cfe818f6622ed2fa7b74606..5dc285ceee244cfcbe9e8c8c216ec19574328f64 100644
--- a/top/a b/text\t
+++ b/top/a b/text\t
@@ -3,7 +3,7 @@
 line 3
 line 4
 line 5
-line 6
+changed
 line 7
 line 8
 line 9
diff --git a/top/binary b/top/binary
new file mode 100644
index 0000000000000000000000000000000000000000..f76dd238ade08917e6712764a16a22005a50573d
GIT binary patch
literal 1
Ic${MZ000310RR91

literal 0
Hc$@<O00001

diff --git a/top/gone b/top/gone
deleted file mode 100644
index b25fa3fc473b6efd5ded03bcddbc4d37fc20674b..0000000000000000000000000000000000000000
--- a/top/gone
+++ /dev/null
@@ -1 +0,0 @@
-last
diff --git a/top/link b/top/link
new file mode 120000
index 0000000000000000000000000000000000000000..376ecb586398f96386eb9574847a967475de602c
--- /dev/null
+++ b/top/link
@@ -0,0 +1 @@
+a b/text
\\ No newline at end of file
diff --git a/top/from b/top/to
similarity index 100%
rename from top/from
rename to top/to
"
    );
}
