//! Changes made through real overlays, mounted as sandboxes have them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use forkyard_branch::{Change, ChangeKind, Layers, Wanted, diff};
use forkyard_testkit::{finish, is_root, skip};
use support::{lower, open, set_opaque, white_out};

/// Runs a script in overlays over `lower`, one above the other; nothing where none can be mounted.
/// The uppers, the topmost first.
fn overlays(dir: &Path, scripts: &[&str]) -> Option<Vec<PathBuf>> {
    let dirs: Vec<PathBuf> = (0..scripts.len()).map(|n| dir.join(format!("upper{n}"))).collect();
    let mut script = "set -e\nmkdir -p merged\n".to_owned();
    let mut lowers = "lower".to_owned();
    for (n, lines) in scripts.iter().enumerate() {
        let mount = format!(
            "mkdir -p upper{n} work{n}\nmount -t overlay overlay -o userxattr,lowerdir={lowers},\
             upperdir=upper{n},workdir=work{n} merged || exit 77\n\
             (cd merged; {lines}\n)\numount merged\nrm -r work{n}\n"
        );
        script.push_str(&mount);
        lowers = format!("upper{n}:{lowers}");
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).current_dir(dir);
    let out = finish(&mut unshare, b"");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    if out.status.code() == Some(77) || said.contains("unshare failed") {
        return None;
    }
    assert!(out.status.success(), "{scripts:?}: {said}");
    Some(dirs.into_iter().rev().collect())
}

/// What a script changes, told by letters and paths.
fn told(dir: &Path, scripts: &[&str], wanted: &Wanted) -> Option<Vec<String>> {
    let uppers = overlays(dir, scripts)?;
    let uppers = uppers.iter().map(|upper| open(upper)).collect();
    let layers = Layers::new(uppers, vec![open(&dir.join("lower"))]);
    Some(diff(&layers, wanted).unwrap().iter().map(tell).collect())
}

fn tell(change: &Change) -> String {
    let path = String::from_utf8_lossy(&change.path);
    let aspects = change.aspects;
    let all = [
        (aspects.kind, "kind"),
        (aspects.contents, "contents"),
        (aspects.mode, "mode"),
        (aspects.owner, "owner"),
        (aspects.attributes, "attributes"),
    ];
    let what: Vec<&str> = all.iter().filter(|(is, _)| *is).map(|(_, what)| *what).collect();
    let line = match &change.kind {
        ChangeKind::Added => format!("added {path}"),
        ChangeKind::Removed => format!("removed {path}"),
        ChangeKind::Changed => format!("changed {path}"),
        ChangeKind::Renamed { from } => {
            format!("renamed {} to {path}", String::from_utf8_lossy(from))
        }
    };
    if what.is_empty() { line } else { format!("{line}: {}", what.join(" ")) }
}

#[test]
fn every_kind_of_change_is_told_once() {
    let cases: &[(&str, &[&str])] = &[
        ("true", &[]),
        ("echo new > text", &["changed text: contents"]),
        ("echo old > text", &[]),
        ("touch text a/one; chmod 644 text; cat a/b/c >> /dev/null", &[]),
        ("chmod 600 text; chmod 700 a", &["changed a: mode", "changed text: mode"]),
        ("chmod 600 text; chmod 644 text; echo x > a/n; rm a/n", &[]),
        ("ln -sfn b link", &["changed link: contents"]),
        ("rm text; mkdir text; echo x > text/in", &["changed text: kind", "added text/in"]),
        ("rm link; mkfifo link", &["changed link: kind"]),
        ("mv text moved", &["renamed text to moved"]),
        ("mv text moved; chmod 755 moved", &["renamed text to moved: mode"]),
        ("mv text moved; echo more >> moved", &["added moved", "removed text"]),
        ("rm -r a/b", &["removed a/b", "removed a/b/c", "removed a/b/d"]),
        ("rm -r a/b; mkdir a/b", &["removed a/b/c", "removed a/b/d"]),
        ("rm -r a/b; mkdir a/b; echo c > a/b/c; echo e > a/b/e", &["removed a/b/d", "added a/b/e"]),
        (
            "rm -r a; echo x > a",
            &["changed a: kind", "removed a/b", "removed a/b/c", "removed a/b/d", "removed a/one"],
        ),
        ("mkdir -p new/deep; ln text new/name; rm new/name", &["added new", "added new/deep"]),
        ("echo x > z; ln z y", &["added y", "added z"]),
        ("! mknod w c 0 0 2>/dev/null", &[]),
    ];
    for (script, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        lower(dir.path());
        let Some(changes) = told(dir.path(), &[script], &Wanted::default()) else {
            skip!("overlays in user namespaces");
        };
        assert_eq!(changes, *expected, "{script}");
    }
}

#[test]
fn changes_of_several_layers_are_told_as_one() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["echo x > n", "rm n"], &[]),
        (&["rm text", "echo old > text"], &[]),
        (&["rm -r a/b", "mkdir a/b; echo d > a/b/d"], &["removed a/b/c"]),
        (&["mkdir n; echo x > n/x", "echo y > n/y"], &["added n", "added n/x", "added n/y"]),
        (&["mv many/x many/z", "mv many/z x"], &["renamed many/x to x"]),
        (&["echo 1 > text", "true", "echo old > text"], &[]),
    ];
    for (scripts, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        lower(dir.path());
        let Some(changes) = told(dir.path(), scripts, &Wanted::default()) else {
            skip!("overlays in user namespaces");
        };
        assert_eq!(changes, *expected, "{scripts:?}");
    }
}

#[test]
fn only_what_is_wanted_is_told_and_nothing_of_what_is_hidden() {
    let dir = tempfile::tempdir().unwrap();
    lower(dir.path());
    let script = "echo x > a/one; echo x > a/b/c; echo x > text; mkdir -p proc/1 srv/data/in home; \
                  echo x > many/x; chmod 700 home";
    let path = |text: &str| text.as_bytes().to_vec();
    let wanted = Wanted {
        paths: Vec::new(),
        hidden: vec![path("proc"), path("srv/data"), path("many")],
        made: vec![path("home")],
    };
    let Some(changes) = told(dir.path(), &[script], &wanted) else {
        skip!("overlays in user namespaces");
    };
    // From out here, what root of the namespace made is root's for root alone.
    let srv = (!is_root()).then_some("added srv");
    let before = ["changed a/b/c: contents", "changed a/one: contents", "added home"];
    let expected: Vec<&str> =
        before.into_iter().chain(srv).chain(["changed text: contents"]).collect();
    assert_eq!(changes, expected);
    let layers =
        Layers::new(vec![open(&dir.path().join("upper0"))], vec![open(&dir.path().join("lower"))]);
    let wanted = Wanted { paths: vec![path("a/b"), path("no/such")], ..wanted };
    let changes: Vec<_> = diff(&layers, &wanted).unwrap().iter().map(tell).collect();
    assert_eq!(changes, ["changed a/b/c: contents"]);
}

/// Random steps, each of which leaves a tree as good as any.
fn steps(seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let names =
        ["a", "a/b", "a/b/c", "a/b/d", "a/one", "link", "many", "many/x", "n", "n/m", "text"];
    let mut script = "set +e\nexec 2>/dev/null\n".to_owned();
    for _ in 0..24 {
        let one = names[next(names.len() as u64) as usize];
        let other = names[next(names.len() as u64) as usize];
        let step = match next(9) {
            0 => format!("rm -rf {one}\n"),
            1 => format!("mkdir {one}\n"),
            2 => format!("[ -d {one} ] || echo {other} > {one}\n"),
            3 => format!("mv -T {one} {other}\n"),
            4 => format!("cp -aT {one} {other}\n"),
            5 => {
                format!("[ -L {one} ] || chmod {} {one}\n", ["700", "755", "711"][next(3) as usize])
            }
            6 => format!("[ -e {one} ] || ln -s {other} {one}\n"),
            7 => format!("[ -d {one} ] || ln {one} {other}\n"),
            _ => format!("touch {one}\n"),
        };
        script.push_str(&step);
    }
    script + "true"
}

/// What is known of each path of a tree.
fn facts(top: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    fn go(top: &Path, path: &Path, into: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) {
        for entry in fs::read_dir(top.join(path)).unwrap().map(Result::unwrap) {
            let (inner, meta) = (path.join(entry.file_name()), entry.metadata().unwrap());
            let contents = if meta.is_dir() {
                go(top, &inner, into);
                Vec::new()
            } else if meta.is_symlink() {
                fs::read_link(entry.path()).unwrap().into_os_string().into_vec()
            } else {
                fs::read(entry.path()).unwrap()
            };
            into.insert(inner, (meta.mode(), contents));
        }
    }
    let mut all = BTreeMap::new();
    go(top, Path::new(""), &mut all);
    all
}

#[test]
fn whatever_is_done_the_changes_lead_from_one_tree_to_the_other() {
    for seed in 0..24 {
        let dir = tempfile::tempdir().unwrap();
        let before = facts(&lower(dir.path()));
        let copy = "; cp -a . ../result0";
        let (first, second) = (steps(2 * seed), steps(2 * seed + 1));
        let second = format!("{second}{}", copy.replace('0', ""));
        let Some(uppers) = overlays(dir.path(), &[&first, &second]) else {
            skip!("overlays in user namespaces");
        };
        let after = facts(&dir.path().join("result"));
        let lowest = vec![open(&dir.path().join("lower"))];
        let layers = Layers::new(uppers.iter().map(|upper| open(upper)).collect(), lowest);
        let changes = diff(&layers, &Wanted::default()).unwrap();
        let mut made = before.clone();
        for change in &changes {
            let path: PathBuf = OsString::from_vec(change.path.clone()).into();
            let was = |path: &PathBuf| before.get(path).cloned();
            match &change.kind {
                ChangeKind::Added => assert_eq!(was(&path), None, "{seed}"),
                ChangeKind::Removed => assert!(!after.contains_key(&path), "{seed}"),
                ChangeKind::Changed => assert_ne!(was(&path), after.get(&path).cloned(), "{seed}"),
                ChangeKind::Renamed { from } => {
                    let from: PathBuf = OsString::from_vec(from.clone()).into();
                    assert_eq!(was(&from).unwrap().1, after.get(&path).unwrap().1, "{seed}");
                    made.remove(&from);
                }
            }
            match after.get(&path) {
                Some(fact) => made.insert(path, fact.clone()),
                None => made.remove(&path),
            };
        }
        assert_eq!(made, after, "{seed}: {first}\n{second}");
    }
}

#[test]
fn marks_of_overlayfs_count_where_it_reads_them_and_are_no_attributes() {
    let dir = tempfile::tempdir().unwrap();
    let lower = lower(dir.path());
    let upper = dir.path().join("upper");
    // A whiteout over nothing, and one of the other form.
    white_out(&upper.join("nothing"));
    fs::create_dir_all(upper.join("many")).unwrap();
    fs::write(upper.join("many/x"), "").unwrap();
    let attribute = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    attribute(&upper.join("many/x"), "user.overlay.whiteout", b"");
    let tell_all = || {
        let layers = Layers::new(vec![open(&upper)], vec![open(&lower)]);
        diff(&layers, &Wanted::default()).unwrap().iter().map(tell).collect::<Vec<_>>()
    };
    assert_eq!(tell_all(), ["changed many/x: contents"], "the directory does not say so");
    attribute(&upper.join("many"), "user.overlay.opaque", b"x");
    attribute(&upper.join("many"), "user.overlay.impure", b"y");
    attribute(&upper.join("many"), "user.overlay.origin", b"whatever");
    assert_eq!(tell_all(), ["removed many/x"]);
    fs::create_dir_all(upper.join("a/b")).unwrap();
    set_opaque(&upper.join("a/b"));
    attribute(&upper.join("a"), "user.mine", b"1");
    assert_eq!(
        tell_all(),
        ["changed a: attributes", "removed a/b/c", "removed a/b/d", "removed many/x"]
    );
    // Marks that mean something to other mounts alone.
    attribute(&upper.join("a"), "user.overlay.redirect", b"/text");
    assert_eq!(tell_all().len(), 4);
}
