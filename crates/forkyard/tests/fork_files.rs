//! Forks of sandboxes that wrote a lot: contents, copies that go their own ways, and what is left.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use forkyard_engine::model::Fork;
use forkyard_testkit::{ImageDir, TestServer, image_dir, wait_for};
use support::{SOON, Sandbox, create};

/// Files of many kinds, more than are copied in the stop, and what became of those of the image.
const WRITE: &str = "
    mkdir -p /made/deep/er /made/gone /made/moved-from; cd /made
    for n in $(seq 200); do echo $n >file-$n; echo $n >deep/er/$n; done
    ln file-1 deep/one; ln file-1 deep/er/uno; ln -s ../file-2 deep/two; mkfifo deep/fifo
    dd if=/dev/urandom of=sparse bs=4096 count=3 seek=2000 2>/dev/null; truncate -s 64M sparse
    chmod 4711 file-3; chmod 700 deep/er; touch -d '2001-02-03 04:05:06' file-4 deep
    for n in $(seq 20); do echo $n >moved-from/$n; done; mv moved-from deep/moved
    echo x >gone/x; rm -r gone; mkdir gone; rm gone/../file-5; rm /bin/vi
    echo more >>/etc/passwd; rm -r /etc; mkdir /etc; echo fresh >/etc/fresh
    echo unseen >deleted; exec 7<deleted; rm deleted";

/// Makes it more than each clone has a copy of.
const MUCH: &str = "dd if=/dev/urandom of=/made/deep/much bs=1M count=17 2>/dev/null";

/// All that can be seen of it.
const SHOW: &str = "
    cd /; find /made /etc /bin | sort | xargs stat -c '%N %F %a %u:%g'
    find /made /etc /bin ! -type d | sort | xargs stat -c '%n %s %h'
    find /made /etc /bin -type f | sort | xargs stat -c %Y
    find /made /etc -type f | sort | xargs md5sum
    stat -c '%i' /made/file-1 /made/deep/one /made/deep/er/uno | uniq | wc -l";

/// A sandbox of an image whose files it may remove, in every mode.
#[track_caller]
fn small<'a>(server: &'a TestServer, image: &ImageDir) -> Sandbox<'a> {
    server.ok(&["image", "import", image.path().to_str().unwrap(), "small"]);
    create(server, &["small"])
}

#[track_caller]
fn fork(sandbox: &Sandbox<'_>, options: &[&str]) -> Fork {
    let mut args = vec!["fork", "--json", sandbox.id.as_str()];
    args.extend(options);
    serde_json::from_str(&sandbox.server.ok(&args)).unwrap()
}

fn clones<'a>(fork: &Fork, server: &'a TestServer) -> Vec<Sandbox<'a>> {
    let clones = fork.clones.iter();
    clones.map(|clone| Sandbox { server, id: clone.id.to_string() }).collect()
}

fn was_copied_ahead(fork: &Fork) -> bool {
    fork.report.stop.iter().any(|phase| phase.name == "files ahead")
}

/// Bytes on disk of what is not being removed.
fn used(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let stat = entry.metadata().ok()?;
            let below = if stat.is_dir() { used(&entry.path()) } else { 0 };
            Some(std::os::unix::fs::MetadataExt::blocks(&stat) * 512 + below)
        })
        .sum()
}

/// Panics with the lines that differ, if any do.
#[track_caller]
fn assert_same(now: &str, before: &str) {
    let only = |these: &str, others: &str| -> Vec<String> {
        let others: BTreeSet<&str> = others.lines().collect();
        these.lines().filter(|line| !others.contains(line)).map(str::to_owned).collect()
    };
    assert!(now == before, "new: {:#?}, gone: {:#?}", only(now, before), only(before, now));
}

/// How many layers there are that clones share.
fn bases(server: &TestServer) -> usize {
    fs::read_dir(server.store().join("bases")).unwrap().count()
}

#[test]
fn files_of_all_kinds_are_the_same_in_clones_and_clones_of_clones() {
    look_at_clones_after(WRITE, [0, 0]);
}

#[test]
fn files_of_all_kinds_are_the_same_in_clones_that_share_them() {
    look_at_clones_after(&format!("{WRITE}; {MUCH}"), [1, 2]);
}

/// Forks twice; `shared`: how many layers clones share after the first fork, and after another
/// one of a clone that wrote much.
fn look_at_clones_after(write: &str, shared: [usize; 2]) {
    let server = TestServer::start();
    let image = image_dir();
    let source = small(&server, &image);
    source.say(write);
    let before = source.say(SHOW);
    assert!(before.contains("/made/deep/fifo fifo") && before.contains("/etc/fresh"), "{before}");
    let first = fork(&source, &["-n", "3"]);
    assert!(was_copied_ahead(&first), "{:?}", first.report);
    assert_eq!(bases(&server), shared[0]);
    let mut all = clones(&first, &server);
    if shared[1] > 0 {
        // Its own, and the same.
        all[0].say("cd /made/deep; cp -p much own; mv own much");
    }
    let nested = fork(&all[0], &["-n", "2"]);
    all.extend(clones(&nested, &server));
    for clone in &all {
        assert_same(&clone.say(SHOW), &before);
        assert_eq!(clone.say("cat <&7; [ ! -e /made/gone/x ] && echo gone"), "unseen\ngone\n");
    }
    assert_same(&source.say(SHOW), &before);
    assert_eq!(bases(&server), shared[1]);
}

#[test]
fn a_sandbox_that_wrote_little_has_its_files_copied_in_the_stop() {
    let server = TestServer::start();
    let source = create(&server, &[]);
    source.say("cd /etc; for n in $(seq 10); do echo $n >file-$n; done");
    let fork = fork(&source, &[]);
    assert!(!was_copied_ahead(&fork), "{:?}", fork.report);
    assert_eq!(clones(&fork, &server)[0].say("cat /etc/file-7"), "7\n");
}

#[test]
fn clones_and_original_write_on_their_own_and_leave_in_any_order() {
    let server = TestServer::start();
    let image = image_dir();
    small(&server, &image);
    for (first_to_go, write) in [WRITE, &format!("{WRITE}; {MUCH}"), WRITE].iter().enumerate() {
        let source = create(&server, &["small"]);
        source.say(write);
        let mut all = clones(&fork(&source, &["-n", "2"]), &server);
        all.push(source);
        for (n, sandbox) in all.iter().enumerate() {
            sandbox
                .say(&format!("echo {n} >>/made/deep/one; rm /made/file-2; mkdir /made/own-{n}"));
        }
        for (n, sandbox) in all.iter().enumerate() {
            let told = sandbox.say("cat /made/file-1 /made/deep/er/uno; ls -d /made/own-*");
            assert_eq!(told, format!("1\n{n}\n1\n{n}\n/made/own-{n}\n"));
        }
        // One is reset, and goes after another.
        server.ok(&["reset", &all[first_to_go].id]);
        let told = all[first_to_go].say("ls -d /made /bin/vi /etc/group 2>&1 | sort");
        assert!(told.contains("/bin/vi\n/etc/group\n"), "{told}");
        let gone = (first_to_go + 1) % 3;
        server.ok(&["rm", &all[gone].id]);
        let last = (first_to_go + 2) % 3;
        assert_eq!(all[last].say("cat /made/deep/er/uno"), format!("1\n{last}\n"));
        // It can be forked as before.
        let again = clones(&fork(&all[last], &[]), &server);
        assert_eq!(again[0].say("cat /made/deep/er/uno"), format!("1\n{last}\n"));
        for sandbox in [&all[first_to_go], &all[last], &again[0]] {
            server.ok(&["rm", &sandbox.id]);
        }
        wait_for("layers that nobody has to go", SOON, || bases(&server) == 0);
    }
}

#[test]
fn what_is_open_in_a_shared_layer_shows_what_others_write_to_it() {
    let server = TestServer::start();
    let image = image_dir();
    let source = small(&server, &image);
    source.say(&format!("{WRITE}; {MUCH}; echo one >log; exec 8<log 9>>log; read -r line <&8"));
    let clones = clones(&fork(&source, &["-n", "2"]), &server);
    assert_eq!(bases(&server), 1);
    for clone in &clones {
        assert_eq!(
            clone.say("echo two >&9; cat <&8; echo three >>/made/log; cat <&8"),
            "two\nthree\n"
        );
        assert_eq!(clone.sh("cat /made/log"), "one\ntwo\nthree\n");
    }
    assert_eq!(source.say("cat <&8; cat log"), "one\n");
}

#[test]
fn a_directory_that_is_half_read_is_read_on_in_clones_that_have_much() {
    let server = TestServer::start();
    let source = create(&server, &[]);
    source.say(
        "mkdir /many; cd /many; for n in $(seq 1200); do : >$n; done
         mkfifo /tmp/go /tmp/read; ls -U /many >/tmp/all",
    );
    let program = "
import os
entries = os.scandir('/many')
names = [next(entries).name for _ in range(5)]
open('/tmp/read', 'w').write('5')
open('/tmp/go').read()
print(len(set(names + [entry.name for entry in entries])))";
    let line = format!("python3 -c \"{program}\"");
    let number = source.start(&line);
    source.say("cat /tmp/read");
    let fork = fork(&source, &["-n", "2"]);
    let mut all = clones(&fork, &server);
    all.push(source);
    for sandbox in &all {
        sandbox.say("echo >/tmp/go");
        sandbox.wait(number);
        let output = server.ok(&["logs", &sandbox.id, &number.to_string()]);
        assert_eq!(output.trim(), "1200");
    }
}

#[test]
fn a_shared_layer_stays_while_anybody_has_it_and_no_longer() {
    let mut server = TestServer::start();
    let image = image_dir();
    let show = |sandbox: &Sandbox<'_>| sandbox.sh("md5sum </made/deep/much; cat /made/file-7");
    let (ids, before) = {
        let source = small(&server, &image);
        source.say(&format!("{WRITE}; {MUCH}"));
        let before = show(&source);
        let clones = clones(&fork(&source, &["-n", "3"]), &server);
        server.ok(&["rm", &source.id]);
        // A reset is from the image.
        server.ok(&["reset", &clones[0].id]);
        clones[0].say("[ ! -e /made ] && ls /bin/vi");
        let again = &self::clones(&fork(&clones[0], &[]), &server)[0];
        again.say("[ ! -e /made ] && ls /bin/vi");
        server.ok(&["snapshot", &clones[1].id, "kept"]);
        server.ok(&["pause", &clones[2].id]);
        (clones.iter().map(|clone| clone.id.clone()).collect::<Vec<_>>(), before)
    };
    // A killed server may have been about to share another one.
    let stray = server.store().join("bases/1-stray");
    fs::create_dir(&stray).unwrap();
    server.kill9();
    server.restart();
    assert!(!stray.exists());
    let of = |id: &str| Sandbox { server: &server, id: id.to_owned() };
    assert_eq!(show(&of(&ids[1])), before);
    server.ok(&["resume", &ids[2]]);
    assert_eq!(show(&of(&ids[2])), before);
    server.ok(&["rm", &ids[1], &ids[2]]);
    let other = create(&server, &["--from", "kept"]);
    assert_eq!(show(&other), before);
    let copy = &clones(&fork(&other, &[]), &server)[0];
    assert_eq!(show(copy), before);
    server.ok(&["rm", &other.id, &copy.id]);
    assert_eq!(bases(&server), 1);
    server.ok(&["snapshots", "rm", "kept"]);
    wait_for("the layer to go", SOON, || bases(&server) == 0);
}

#[test]
fn space_is_given_back_and_the_last_clone_costs_no_copy_more() {
    let server = TestServer::start();
    let source = create(&server, &[]);
    source.say("dd if=/dev/zero of=/large bs=1M count=32 2>/dev/null");
    let clone = clones(&fork(&source, &[]), &server).remove(0);
    assert_eq!(clone.say("stat -c %s /large"), format!("{}\n", 32 << 20));
    assert_eq!(fs::read_dir(server.store().join("templates")).unwrap().count(), 0);
    server.ok(&["rm", &clone.id]);
    server.ok(&["rm", &source.id]);
    wait_for("space to be given back", SOON, || used(server.store()) < 8 << 20);
}

#[test]
fn the_copy_is_of_one_moment_while_a_command_appends() {
    let server = TestServer::start();
    let image = image_dir();
    let source = small(&server, &image);
    source.say(WRITE);
    // Two files are written one after the other, so they never differ by more than a line.
    let line = "n=0; while :; do n=$((n + 1)); echo $n >>/made/a; echo $n >>/made/b; done";
    let number = source.start(line);
    wait_for("the command to write", SOON, || source.say("ls /made").contains("b\n"));
    for _ in 0..5 {
        let fork = fork(&source, &["-n", "2"]);
        assert!(was_copied_ahead(&fork));
        for clone in clones(&fork, &server) {
            server.ok(&["kill", "-s", "KILL", &clone.id, &number.to_string()]);
            clone.wait(number);
            let counts = clone.sh("wc -l </made/a; wc -l </made/b; tail -n 1 /made/a");
            let counts: Vec<i64> = counts.lines().map(|n| n.trim().parse().unwrap()).collect();
            let ahead = counts[0] - counts[1];
            assert!((0..=1).contains(&ahead) && counts[0] == counts[2], "{counts:?}");
            server.ok(&["rm", &clone.id]);
        }
    }
}

#[test]
fn files_alone_are_kept_of_what_was_copied_ahead() {
    let server = TestServer::start();
    let image = image_dir();
    let source = small(&server, &image);
    source.say(WRITE);
    let before = source.say(SHOW);
    server.ok(&["snapshot", "--files-only", &source.id, "kept"]);
    server.ok(&["snapshot", &source.id, "whole"]);
    for snapshot in ["kept", "whole"] {
        let other = create(&server, &["--from", snapshot]);
        assert_same(&other.sh(SHOW), &before);
    }
    server.ok(&["pause", &source.id]);
    server.ok(&["resume", &source.id]);
    assert_same(&source.say(SHOW), &before);
}

#[test]
fn what_is_made_from_a_snapshot_shares_its_files_while_it_is_there_and_after() {
    let mut server = TestServer::start();
    let image = image_dir();
    let places = || fs::read_dir(server.store().join("snapshots")).unwrap().count();
    let source = small(&server, &image);
    source.say(&format!("{WRITE}; {MUCH}; echo one >log; exec 8<log"));
    let before = source.say(SHOW);
    for kind in [&[][..], &["--files-only"]] {
        let mut args = vec!["snapshot", &source.id, "kept"];
        args.extend(kind);
        server.ok(&args);
        let made: Vec<_> = (0..3).map(|_| create(&server, &["--from", "kept"])).collect();
        for sandbox in &made {
            assert_same(&sandbox.sh(SHOW), &before);
            let upper = server.store().join("sandboxes").join(&sandbox.id).join("g1/root");
            assert!(used(&upper) < 1 << 20, "{} has its own copy", sandbox.id);
        }
        if kind.is_empty() {
            let said = made[0].say("echo two >>/made/log; cat <&8; echo more >>/made/deep/one");
            assert_eq!(said, "one\ntwo\n");
            assert_eq!(made[0].sh("cat /made/file-1"), "1\nmore\n");
            assert_same(&made[1].sh(SHOW), &before);
        }
        let clone = &clones(&fork(&made[1], &[]), &server)[0];
        assert_same(&clone.sh(SHOW), &before);
        server.ok(&["snapshots", "rm", "kept"]);
        server.ok(&["reset", &made[0].id]);
        assert_eq!(made[0].sh("ls -d /made || ls /bin/vi"), "/bin/vi\n");
        assert_eq!((bases(&server), places()), (0, 1));
        server.ok(&["rm", &made[0].id, &made[1].id, &made[2].id]);
        assert_same(&clone.sh(SHOW), &before);
        server.ok(&["rm", &clone.id]);
        wait_for("the files to go", SOON, || places() == 0);
    }
    // One that was removed is known to a later server by who needs it.
    server.ok(&["snapshot", &source.id, "kept"]);
    let id = create(&server, &["--from", "kept"]).id;
    server.ok(&["snapshots", "rm", "kept"]);
    drop(source);
    server.kill9();
    server.restart();
    let places = || fs::read_dir(server.store().join("snapshots")).unwrap().count();
    let left = Sandbox { server: &server, id };
    assert_same(&left.sh(SHOW), &before);
    assert_eq!(places(), 1);
    server.ok(&["rm", &left.id]);
    wait_for("the files to go", SOON, || places() == 0);
}
