//! Changes brought into a directory: all or none, whoever is killed, and nothing over others' work.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use forkyard_branch::commit::{Known, Moment, Outcome, PLACE, clock, commit, recover};
use forkyard_branch::{Change, Layers, Wanted, diff};
use forkyard_testkit::{find_program, finish, is_root, skip};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use support::{File, Tree, entries, open, set_opaque, text, upper_of, white_out};

/// A directory, and what was changed of it in layers above.
struct Branch {
    top: OwnedFd,
    layers: Layers,
    known: Known,
}

impl Branch {
    /// Begins when all that is in the directory was changed before, by its file system's clock.
    fn new(target: &Path, upper: &Path) -> Self {
        let top = open(target);
        let since = later(&top);
        fs::create_dir_all(upper).unwrap();
        let layers = Layers::new(vec![open(upper)], vec![open(target)]);
        Self { top, layers, known: Known { since, written: BTreeMap::new() } }
    }

    fn changes(&self) -> Vec<Change> {
        diff(&self.layers, &Wanted::default()).unwrap()
    }

    fn commit(&mut self) -> Outcome {
        commit(&self.layers, &self.changes(), &self.top, &mut self.known).unwrap()
    }
}

/// The next moment of the file system's clock.
fn later(top: &OwnedFd) -> Moment {
    let now = clock(top).unwrap();
    loop {
        std::thread::sleep(Duration::from_millis(1));
        let then = clock(top).unwrap();
        if then > now {
            return then;
        }
    }
}

/// Commits random changes below a directory.
fn commit_random_changes(dir: &Path, cases: u32) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let run = TestRunner::new(config).run(&(entries(), entries()), |(old, change)| {
        let new = old.changed(&change);
        let dir = tempfile::tempdir_in(dir).unwrap();
        let (target, upper) = (dir.path().join("target"), dir.path().join("upper"));
        old.write(&target);
        upper_of(&old, &new, &upper);
        let mut branch = Branch::new(&target, &upper);
        prop_assert_eq!(branch.commit(), Outcome::Done);
        prop_assert_eq!(Tree::read(&target), new);
        prop_assert_eq!(branch.changes(), vec![], "nothing is left to be committed");
        prop_assert_eq!(branch.commit(), Outcome::Done);
        Ok(())
    });
    run.unwrap();
}

#[test]
fn whatever_was_changed_is_there_after_a_commit() {
    commit_random_changes(&std::env::temp_dir(), 64);
}

#[test]
fn commits_work_on_every_file_system() {
    if !is_root() {
        skip!("root, to mount file systems");
    }
    let mut lacking = Vec::new();
    for (name, options) in [("ext4", &["-q"][..]), ("xfs", &["-q"]), ("btrfs", &["-q"])] {
        let program = format!("mkfs.{name}");
        if find_program(&program).is_none() {
            lacking.push(program);
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let (image, at) = (dir.path().join("image"), dir.path().join("at"));
        fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
        fs::create_dir(&at).unwrap();
        assert!(finish(Command::new(program).args(options).arg(&image), b"").status.success());
        let mounted = finish(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at), b"");
        if !mounted.status.success() {
            lacking.push(format!("mounts of {name}"));
            continue;
        }
        let committed = std::panic::catch_unwind(|| commit_random_changes(&at, 12));
        assert!(finish(Command::new("umount").arg(&at), b"").status.success());
        committed.unwrap();
    }
    if !lacking.is_empty() {
        skip!("{}", lacking.join(", "));
    }
}

#[test]
fn modes_owners_times_links_attributes_and_holes_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (target, upper) = (dir.path().join("target"), dir.path().join("upper"));
    Tree::of(&[("kept", text("kept")), ("dir/in", text("in"))]).write(&target);
    let mut branch = Branch::new(&target, &upper);
    let at = |name: &str| upper.join(name);
    let long = "n".repeat(255);
    fs::write(at("one"), "1").unwrap();
    fs::hard_link(at("one"), at("two")).unwrap();
    fs::write(at(&long), "long").unwrap();
    fs::set_permissions(at("one"), fs::Permissions::from_mode(0o4711)).unwrap();
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.write_all_at(b"in the middle", 64 << 20).unwrap();
    sparse.set_len(128 << 20).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), rustix::fs::Mode::RWXU).unwrap();
    symlink("nowhere", at("link")).unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::create_dir(at("dir")).unwrap();
    fs::set_permissions(at("dir"), fs::Permissions::from_mode(0o711)).unwrap();
    let attributed = match rustix::fs::setxattr(
        at("one"),
        "user.mine",
        b"value",
        rustix::fs::XattrFlags::empty(),
    ) {
        Ok(()) => true,
        Err(rustix::io::Errno::OPNOTSUPP) => false,
        Err(e) => panic!("{e}"),
    };
    for name in ["one", "empty", "sparse"] {
        let past = fs::FileTimes::new()
            .set_modified(std::time::UNIX_EPOCH + Duration::new(1_000_000_007, 5));
        fs::File::open(at(name)).unwrap().set_times(past).unwrap();
    }
    if is_root() {
        std::os::unix::fs::chown(at("one"), Some(1234), Some(99)).unwrap();
        fs::set_permissions(at("one"), fs::Permissions::from_mode(0o4711)).unwrap();
    }
    assert_eq!(branch.commit(), Outcome::Done);
    let stat = |name: &str| fs::symlink_metadata(target.join(name)).unwrap();
    assert_eq!(stat("one").ino(), stat("two").ino());
    // With the rights of its owner nobody runs what a guest wrote.
    assert_eq!(stat("one").mode() & 0o7777, 0o711);
    assert_eq!((stat("one").mtime(), stat("one").mtime_nsec()), (1_000_000_007, 5));
    assert_eq!((stat("empty").mtime(), stat("empty").mtime_nsec()), (1_000_000_007, 5));
    assert_eq!(stat("dir").mode() & 0o7777, 0o711);
    assert_eq!(stat("sparse").len(), 128 << 20);
    assert!(stat("sparse").blocks() * 512 < 1 << 20, "{}", stat("sparse").blocks());
    let mut middle = [0; 13];
    let sparse = fs::File::open(target.join("sparse")).unwrap();
    sparse.read_exact_at(&mut middle, 64 << 20).unwrap();
    assert_eq!(&middle, b"in the middle");
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&stat("fifo").file_type()));
    assert_eq!(fs::read_link(target.join("link")).unwrap(), Path::new("nowhere"));
    assert_eq!(fs::read_to_string(target.join(&long)).unwrap(), "long");
    if attributed {
        let mut value = [0; 16];
        let length = rustix::fs::getxattr(target.join("one"), "user.mine", &mut value).unwrap();
        assert_eq!(&value[..length], b"value");
    }
    if is_root() {
        assert_eq!((stat("one").uid(), stat("one").gid()), (1234, 99));
    }
    assert!(!target.join(PLACE).exists());
}

/// What others may do to a directory, and the path that a commit then names.
type Meddling = (&'static str, fn(&Path), &'static str);

#[test]
fn what_others_changed_is_a_conflict_and_nothing_is_done() {
    let cases: &[Meddling] = &[
        ("write", |top| fs::write(top.join("changed"), "theirs").unwrap(), "changed"),
        ("write back", |top| fs::write(top.join("changed"), "old").unwrap(), "changed"),
        (
            "change the mode",
            |top| {
                let mode = fs::Permissions::from_mode(0o640);
                fs::set_permissions(top.join("changed"), mode).unwrap();
            },
            "changed",
        ),
        (
            "replace",
            |top| {
                fs::write(top.join("new"), "old").unwrap();
                fs::rename(top.join("new"), top.join("changed")).unwrap();
            },
            "changed",
        ),
        ("write to what goes", |top| fs::write(top.join("gone/a"), "theirs").unwrap(), "gone/a"),
        ("add where all goes", |top| fs::write(top.join("gone/b"), "theirs").unwrap(), "gone/b"),
        ("add the same name", |top| fs::write(top.join("added"), "theirs").unwrap(), "added"),
        ("write to what moves", |top| fs::write(top.join("from"), "theirs").unwrap(), "from"),
    ];
    for (what, meddle, path) in cases {
        let dir = tempfile::tempdir().unwrap();
        let (target, upper) = (dir.path().join("target"), dir.path().join("upper"));
        let old = [("changed", text("old")), ("gone/a", text("a")), ("from", text("moved"))];
        Tree::of(&old).write(&target);
        let mut branch = Branch::new(&target, &upper);
        Tree::of(&[("changed", text("new")), ("added", text("new")), ("to", text("moved"))])
            .write(&upper);
        for path in ["gone", "from"] {
            white_out(&upper.join(path));
        }
        meddle(&target);
        let theirs = Tree::read(&target);
        assert_eq!(branch.commit(), Outcome::Conflict(vec![path.as_bytes().to_vec()]), "{what}");
        assert_eq!(Tree::read(&target), theirs, "{what}");
    }
}

#[test]
fn a_branch_commits_again_over_what_it_wrote_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (target, upper) = (dir.path().join("target"), dir.path().join("upper"));
    Tree::of(&[("file", text("old"))]).write(&target);
    let mut branch = Branch::new(&target, &upper);
    for round in 0..3 {
        fs::write(upper.join("file"), format!("round {round}")).unwrap();
        fs::write(upper.join("added"), format!("added {round}")).unwrap();
        assert_eq!(branch.commit(), Outcome::Done, "{round}");
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), format!("round {round}"));
    }
    fs::write(target.join("added"), "theirs").unwrap();
    fs::write(upper.join("added"), "again").unwrap();
    assert_eq!(branch.commit(), Outcome::Conflict(vec![b"added".to_vec()]));
    assert_eq!(fs::read_to_string(target.join("added")).unwrap(), "theirs");
}

#[test]
fn a_guest_cannot_write_what_only_forkyard_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (target, upper) = (dir.path().join("target"), dir.path().join("upper"));
    fs::create_dir(&target).unwrap();
    let mut branch = Branch::new(&target, &upper);
    for path in [PLACE.to_owned(), format!("{PLACE}/journal")] {
        Tree::of(&[(path.as_str(), text("forged"))]).write(&upper);
        let changes = branch.changes();
        let error = commit(&branch.layers, &changes, &branch.top, &mut branch.known).unwrap_err();
        assert!(error.to_string().contains("not permitted"), "{error}");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
        let path = upper.join(PLACE);
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
    }
}

/// Two trees with much to be moved between.
fn much() -> (Tree, Tree) {
    let mut files = vec![("kept/one".to_owned(), text("1"))];
    files.extend((0..40).map(|n| (format!("dir{}/file{n}", n % 4), text(&format!("old {n}")))));
    let named = |files: &[(String, File)]| {
        Tree::of(
            &files.iter().map(|(path, file)| (path.as_str(), file.clone())).collect::<Vec<_>>(),
        )
    };
    let old = named(&files);
    let mut files = vec![("kept/one".to_owned(), text("1"))];
    files.extend((0..30).map(|n| (format!("dir{}/file{n}", n % 3), text(&format!("new {n}")))));
    files.extend((0..20).map(|n| (format!("more/{}/file", n % 7), text(&format!("more {n}")))));
    files.push(("dir3".to_owned(), text("a file now")));
    (old, named(&files))
}

/// What tells this program, started again by a test, to commit in a directory.
const COMMIT_IN: &str = "FORKYARD_TEST_COMMIT_IN";

fn again(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--test-threads=1"]).env(COMMIT_IN, dir);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command
}

#[test]
fn killed_at_any_moment_a_commit_is_whole_or_undone() {
    if let Some(dir) = std::env::var_os(COMMIT_IN) {
        let dir = PathBuf::from(dir);
        let mut branch = Branch::new(&dir.join("target"), &dir.join("upper"));
        assert_eq!(branch.commit(), Outcome::Done);
        return;
    }
    let (old, new) = much();
    let dir = tempfile::tempdir().unwrap();
    let (target, upper) = (dir.path().join("target"), dir.path().join("upper"));
    upper_of(&old, &new, &upper);
    let (mut whole, mut undone, mut cut, mut longest) = (0, 0, 0, Duration::from_millis(40));
    for round in 0..200_u32 {
        let _ = fs::remove_dir_all(&target);
        old.write(&target);
        let begun = std::time::Instant::now();
        let mut child =
            again("killed_at_any_moment_a_commit_is_whole_or_undone", dir.path()).spawn().unwrap();
        // A golden section: spread evenly, whatever the number of rounds.
        let share = f64::from(round) * 0.618_034 % 1.0;
        std::thread::sleep(longest.mul_f64(share));
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            longest = longest.min(begun.elapsed());
        }
        cut += usize::from(target.join(PLACE).exists());
        recover(&open(&target)).unwrap();
        let found = Tree::read(&target);
        if found == new {
            whole += 1;
        } else {
            assert_eq!(found, old, "round {round}");
            undone += 1;
        }
    }
    assert!(whole > 10 && undone > 10 && cut > 10, "{whole} whole, {undone} undone, {cut} cut");
}

#[test]
fn a_full_disk_leaves_the_directory_as_it_was() {
    if let Some(dir) = std::env::var_os(COMMIT_IN) {
        let dir = PathBuf::from(dir);
        let old = Tree::of(&[("kept", text("kept")), ("file", text("old"))]);
        old.write(&dir.join("target"));
        fs::create_dir(dir.join("upper")).unwrap();
        fs::write(dir.join("upper/file"), vec![7; 600 << 10]).unwrap();
        let mut branch = Branch::new(&dir.join("target"), &dir.join("upper"));
        let changes = branch.changes();
        let error = commit(&branch.layers, &changes, &branch.top, &mut branch.known).unwrap_err();
        assert!(error.to_string().contains("No space left"), "{error}");
        assert_eq!(Tree::read(&dir.join("target")), old);
        fs::write(dir.join("upper/file"), "fits").unwrap();
        assert_eq!(branch.commit(), Outcome::Done);
        assert_eq!(fs::read_to_string(dir.join("target/file")).unwrap(), "fits");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=1m none \"$0\" || exit 77; exec \"$@\"";
    let program = again("a_full_disk_leaves_the_directory_as_it_was", dir.path());
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(dir.path());
    command.arg(program.get_program()).args(program.get_args()).env(COMMIT_IN, dir.path());
    let out = finish(&mut command, b"");
    if out.status.code() == Some(77) {
        skip!("mounts in user namespaces");
    }
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
}

#[test]
fn a_directory_that_came_and_went_is_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let (target, upper) = (dir.path().join("target"), dir.path().join("upper"));
    Tree::of(&[("dir/a", text("a")), ("dir/deep/b", text("b"))]).write(&target);
    let mut branch = Branch::new(&target, &upper);
    Tree::of(&[("dir/c", text("c")), ("dir/deep", text("a file"))]).write(&upper);
    set_opaque(&upper.join("dir"));
    assert_eq!(branch.commit(), Outcome::Done);
    let new = Tree::of(&[("dir/c", text("c")), ("dir/deep", text("a file"))]);
    assert_eq!(Tree::read(&target), new);
}
