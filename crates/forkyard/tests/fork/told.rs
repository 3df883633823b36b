//! What clones are told of their fork: a file, and hooks of the sandbox's own.

use std::collections::BTreeMap;
use std::time::Duration;

use forkyard_testkit::{TestServer, is_root, skip, wait_for, wait_some};

use super::clone;
use super::support::{Sandbox, create};

/// How long hooks may take, all of them.
const PATIENCE: Duration = Duration::from_secs(60);

/// The lines of `/run/forkyard/fork`.
#[track_caller]
fn told(sandbox: &Sandbox<'_>) -> BTreeMap<String, String> {
    let text = sandbox.say("cat /run/forkyard/fork");
    let pair = |line: &str| {
        let (name, value) = line.split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    };
    text.lines().map(pair).collect()
}

#[test]
fn a_clone_is_told_whose_it_is_before_it_goes_on() {
    let server = TestServer::start();
    let source = create(&server, &[]);
    assert_eq!(source.say("ls /run/forkyard 2>/dev/null || echo nothing"), "nothing\n");
    // A host's name is its id here. One that reads the new name, then the file, reads the new file.
    source.say(
        "while :; do\n\
           read name </proc/sys/kernel/hostname; . /run/forkyard/fork\n\
           echo \"$name $id\" >&3\n\
         done 2>/dev/null 3>/tmp/seen & job=$!",
    );
    let clones = [clone(&source), clone(&source)];
    for (generation, sandbox) in [(1, &clones[0]), (1, &clones[1]), (2, &clone(&clones[0]))] {
        let lines = told(sandbox);
        assert_eq!(lines["id"], sandbox.id);
        assert_eq!(lines["generation"], generation.to_string());
        let parent = if generation == 1 { &source.id } else { &clones[0].id };
        assert_eq!(lines["parent"], *parent);
        let since =
            "echo $(($(date +%s) - $(date -d \"$(sed -n s/time=//p /run/forkyard/fork)\" +%s)))";
        let since: u64 = sandbox.say(since).trim().parse().unwrap();
        assert!(since < 300, "{since} seconds");
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert_eq!(
            sandbox.say("stat -c '%a %u %g' /run/forkyard/fork /run/forkyard"),
            "644 0 0\n755 0 0\n"
        );
        let own = format!("grep -c '^{0} ' /tmp/seen || true", sandbox.id);
        wait_for("the program to go on", PATIENCE, || sandbox.say(&own) != "0\n");
        let wrong = format!("grep '^{0} ' /tmp/seen | grep -v '^{0} {0}$' || true", sandbox.id);
        assert_eq!(sandbox.say(&wrong), "");
    }
    assert_eq!(source.say("ls /run/forkyard 2>/dev/null || echo nothing"), "nothing\n");
    server.ok(&["reset", &clones[1].id]);
    assert_eq!(clones[1].say("ls /run/forkyard 2>/dev/null || echo nothing"), "nothing\n");
}

/// Puts an executable among the hooks.
#[track_caller]
fn hook(sandbox: &Sandbox<'_>, name: &str, script: &str) {
    sandbox.say(&format!(
        "mkdir -p /etc/forkyard/fork.d; cat >/etc/forkyard/fork.d/{name} <<'END'\n#!/bin/sh\n\
         {script}\nEND\nchmod +x /etc/forkyard/fork.d/{name}"
    ));
}

/// Waits for all hooks, the last of which is `last`: their names, exit codes and output.
#[track_caller]
fn ran(sandbox: &Sandbox<'_>, last: &str) -> Vec<(String, Option<i32>, String)> {
    let path = format!("/etc/forkyard/fork.d/{last}");
    let all = wait_some("the last hook to end", PATIENCE, || {
        let all = sandbox.commands();
        let over =
            all.iter().any(|command| command.argv == [path.as_str()] && command.exit.is_some());
        over.then_some(all)
    });
    all.into_iter()
        .map(|command| {
            let name = command.argv[0].rsplit('/').next().unwrap().to_owned();
            let output = sandbox.server.ok(&["logs", &sandbox.id, &command.id.0.to_string()]);
            (name, command.exit.map(|exit| exit.code), output)
        })
        .collect()
}

#[test]
fn hooks_of_a_sandbox_run_in_each_clone_in_order() {
    let server = TestServer::start();
    let source = create(&server, &[]);
    hook(&source, "20-fails", "echo $FORKYARD_GENERATION; exit 3");
    hook(
        &source,
        "10-first",
        "echo $FORKYARD_ID $FORKYARD_PARENT $(id -u) $PWD; touch /root/first",
    );
    hook(&source, "30-last.sh", "test -e /root/first && echo after");
    hook(&source, "15-off", "touch /root/off");
    hook(&source, ".hidden", "touch /root/off");
    hook(&source, "old~", "touch /root/off");
    source.say("chmod -x /etc/forkyard/fork.d/15-off");
    for sandbox in [clone(&source), clone(&source)] {
        let first = format!("{} {} 0 /\n", sandbox.id, source.id);
        let wanted =
            [("10-first", 0, first.as_str()), ("20-fails", 3, "1\n"), ("30-last.sh", 0, "after\n")];
        let wanted =
            wanted.map(|(name, code, text)| (name.to_owned(), Some(code), text.to_owned()));
        assert_eq!(ran(&sandbox, "30-last.sh"), wanted);
        assert_eq!(sandbox.say("ls /root"), "first\n");
    }
    assert_eq!(source.say("ls /root"), "");
    assert_eq!(source.commands().len(), 0);
    // One that goes on from a picture on disk is a clone, too; one that was paused is itself.
    server.ok(&["snapshot", &source.id, "kept"]);
    let restored = server.ok(&["create", "--from", "kept"]).trim().to_owned();
    let restored = Sandbox { server: &server, id: restored };
    assert_eq!(ran(&restored, "30-last.sh").len(), 3);
    assert_eq!(told(&restored)["parent"], source.id);
    server.ok(&["pause", &restored.id]);
    server.ok(&["resume", &restored.id]);
    assert_eq!(told(&restored)["generation"], "1");
    assert_eq!(restored.commands().iter().filter(|c| c.exit.is_none()).count(), 0);
}

#[test]
fn hooks_are_held_back_as_any_command_and_for_a_time() {
    if !is_root() {
        skip!("done as root alone: a hook is given ten seconds");
    }
    let server = TestServer::start();
    let source = create(&server, &[]);
    // Names that are no files, and lead out or nowhere.
    source.say(
        "mkdir -p /etc/forkyard/fork.d/00-dir; cd /etc/forkyard/fork.d; mkfifo 01-fifo\n\
         chmod +x 01-fifo; ln -s /proc/1/exe 02-init; ln -s 03-loop 03-loop; ln -s /dev/null 04-null\n\
         printf '#!/nowhere\\n' >05-nowhere; printf x >06-nothing; chmod +x 05-nowhere 06-nothing",
    );
    hook(&source, "10-endless", "trap '' TERM; (while :; do :; done) & exec yes");
    hook(
        &source,
        "20-mounts",
        "mount -t tmpfs none /mnt; cat /proc/1/environ; grep CapEff /proc/self/status",
    );
    for n in 0..70 {
        hook(&source, &format!("30-many-{n:02}"), "exit 0");
    }
    let other = clone(&source);
    // The clone is there at once, and can be used meanwhile.
    assert_eq!(other.say("echo works"), "works\n");
    let all = ran(&other, "30-many-59");
    let names: Vec<_> = all.iter().map(|(name, ..)| name.as_str()).collect();
    // The first two of 64 that are executable cannot be run.
    assert_eq!((&names[..2], names.len()), (&["10-endless", "20-mounts"][..], 62));
    assert_eq!(all[0].1, Some(124), "its time was up");
    let own = other.exec(&[
        "sh",
        "-c",
        "mount -t tmpfs none /mnt; cat /proc/1/environ; grep CapEff /proc/self/status",
    ]);
    assert!(all[1].2.ends_with(&String::from_utf8_lossy(&own.stdout).into_owned()), "{:?}", all[1]);
    assert_eq!(other.sh("pgrep -c yes || true"), "0\n");
}

#[test]
fn what_is_in_the_way_of_the_file_keeps_no_clone_from_going_on() {
    let server = TestServer::start();
    let host = tempfile::tempdir().unwrap();
    let volume = format!("{}:/volume", host.path().display());
    let source = create(&server, &["-v", &volume]);
    for (line, left) in [
        ("mkdir -p /run/forkyard/fork/dir", "dir\n"),
        ("rm -rf /run/forkyard; ln -s /volume /run/forkyard", ""),
        ("rm -rf /run/forkyard; mkdir -p /run/forkyard; mkfifo /run/forkyard/.fork", "file\n"),
        (
            "rm -rf /run/forkyard; mkdir -p /run/forkyard; ln -s /volume/x /run/forkyard/fork",
            "file\n",
        ),
        ("rm -rf /run/forkyard; touch /run/forkyard", ""),
    ] {
        source.say(line);
        let other = clone(&source);
        let seen = "cd /run/forkyard/fork 2>/dev/null && ls && exit\n\
                    test -f /run/forkyard/fork && echo file || true";
        assert_eq!(other.say(&format!("({seen})")), left, "{line}");
        server.ok(&["rm", &other.id]);
    }
    assert_eq!(std::fs::read_dir(host.path()).unwrap().count(), 0, "nothing on the host");
}
