//! File requests as init answers them, on a directory in the place of a sandbox's root, and the
//! look-up of users in its `/etc/passwd`.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::time::Duration;

use criterion::Criterion;
use forkyard_guest::files::proto::{FileOp, FileRequest, INLINE_MAX, WriteTarget};
use forkyard_guest::files::{Defaults, Root, handle};
use forkyard_guest::users::resolve;
use tempfile::TempDir;

/// Lines of `/etc/passwd` and `/etc/group` where there are many: a directory service's, written
/// out.
const MANY: u32 = 10_000;

fn main() {
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    requests(&mut criterion);
    users(&mut criterion);
    criterion.final_summary();
}

fn requests(criterion: &mut Criterion) {
    let dir = root_with_users(20);
    let top = dir.path();
    fs::write(top.join("small"), vec![b'x'; 4096]).unwrap();
    fs::write(top.join("inline"), vec![b'x'; INLINE_MAX]).unwrap();
    fs::write(top.join("large"), vec![b'x'; INLINE_MAX + 1]).unwrap();
    fs::create_dir(top.join("dir")).unwrap();
    for n in 0..1000 {
        fs::write(top.join(format!("dir/file-{n}")), b"").unwrap();
    }
    let root = Root::open(top).unwrap();
    // As whoever runs this, so that it needs no root.
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let defaults = Defaults { cwd: b"/".to_vec(), user: format!("{uid}:{gid}") };
    let read =
        |path: &str| FileOp::Read { path: path.as_bytes().to_vec(), offset: 0, length: None };
    let write = |length| {
        let target = WriteTarget { path: b"written".to_vec(), ..WriteTarget::default() };
        FileOp::Write { target, contents: vec![b'x'; length] }
    };
    let ops = [
        ("stat", FileOp::Stat { path: b"small".to_vec(), follow: true }),
        ("read 4 KiB", read("small")),
        ("read 64 KiB", read("inline")),
        ("read more, by descriptor", read("large")),
        ("write 4 KiB", write(4096)),
        ("write 64 KiB", write(INLINE_MAX)),
        ("list 1,000", FileOp::List { path: b"dir".to_vec(), depth: 1, limit: 2000 }),
    ];
    let mut group = criterion.benchmark_group("files");
    for (name, op) in ops {
        let request = FileRequest { user: None, op };
        let (answer, _) = handle(&root, request.clone(), None, &defaults);
        answer.unwrap();
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || request.clone(),
                |request| handle(&root, request, None, &defaults),
                criterion::BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn users(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("users");
    for lines in [20, MANY] {
        let dir = root_with_users(lines);
        let root = Root::open(dir.path()).unwrap();
        let last = lines - 1;
        for spec in [format!("user{last}"), format!("{last}"), format!("user{last}:group{last}")] {
            assert_eq!(resolve(&root, &spec).unwrap().uid, last);
            group.bench_function(format!("{spec} of {lines}"), |bencher| {
                bencher.iter(|| resolve(&root, black_box(&spec)));
            });
        }
    }
    group.finish();
}

/// A root with an `/etc/passwd` and an `/etc/group` of so many lines.
fn root_with_users(lines: u32) -> TempDir {
    let (mut passwd, mut group) = (String::new(), String::new());
    for n in 0..lines {
        writeln!(passwd, "user{n}:x:{n}:{n}:Somebody:/home/user{n}:/bin/bash").unwrap();
        writeln!(group, "group{n}:x:{n}:user{n},user{}", n / 2).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("etc")).unwrap();
    fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
    fs::write(dir.path().join("etc/group"), group).unwrap();
    dir
}
