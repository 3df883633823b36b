//! Snapshots on disk: taken of what runs, gone on from when all else is gone, complete or absent.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use forkyard_engine::model::{
    Created, NewSnapshot, Paused, Resumed, Snapshot, SnapshotKind, SnapshotState, State,
};
use forkyard_testkit::{TestServer, image_dir, skip, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use support::kill::Random;
use support::{SOON, Sandbox, create, refused, stderr};

/// Takes a snapshot; what the server says of it.
#[track_caller]
fn snapshot(sandbox: &Sandbox<'_>, options: &[&str]) -> NewSnapshot {
    let mut args = vec!["snapshot", "--json", sandbox.id.as_str()];
    args.extend(options);
    serde_json::from_str(&sandbox.server.ok(&args)).unwrap()
}

/// A sandbox that goes on from a snapshot.
#[track_caller]
fn from<'a>(server: &'a TestServer, snapshot: &str) -> Sandbox<'a> {
    create(server, &["--from", snapshot])
}

#[track_caller]
fn snapshots(server: &TestServer) -> Vec<Snapshot> {
    serde_json::from_str(&server.ok(&["snapshots", "--json"])).unwrap()
}

/// A sandbox with a session that knows something, and a command that counts, in memory alone.
#[track_caller]
fn counting(server: &TestServer) -> Sandbox<'_> {
    let sandbox = create(server, &[]);
    sandbox.say("cd /usr; x=kept; f() { echo $x $PWD; }; echo old >/tmp/file; echo old >/etc/file");
    sandbox.start("n=1000; trap 'echo $n' USR1; while :; do n=$((n + 1)); sleep 0.01; done");
    sandbox
}

/// What [`counting`] left is there.
#[track_caller]
fn goes_on(sandbox: &Sandbox<'_>) {
    assert_eq!(sandbox.say("f; cat /tmp/file /etc/file"), "kept /usr\nold\nold\n");
    let listed = sandbox.commands();
    assert!(listed.len() == 1 && listed[0].exit.is_none(), "{listed:?}");
    sandbox.server.ok(&["kill", "-s", "USR1", &sandbox.id, "1"]);
    wait_for("the count", SOON, || {
        let said = sandbox.server.ok(&["logs", &sandbox.id, "1"]);
        said.lines().next_back().is_some_and(|line| line.parse::<u32>().is_ok_and(|n| n > 1000))
    });
}

/// Waits until the store has nothing but these sandboxes and snapshots.
#[track_caller]
fn is_tidy(server: &TestServer, sandboxes: usize, running: usize, snapshots: usize) {
    let entries = |part: &str| fs::read_dir(server.store().join(part)).unwrap().count();
    wait_for("a store without leavings", SOON, || {
        entries("sandboxes") == sandboxes
            && entries("run") == running
            && entries("snapshots") == snapshots
            && entries("templates") == 0
            && entries("trash") == 0
    });
}

#[test]
fn a_snapshot_is_gone_on_from_after_server_and_sandboxes_are_gone() {
    let mut server = TestServer::start();
    let source = counting(&server);
    let taken = snapshot(&source, &["warm"]);
    assert_eq!(taken.snapshot.state, SnapshotState::Ready);
    assert_eq!(taken.snapshot.kind, SnapshotKind::Memory);
    let report = &taken.report;
    assert!(report.stopped_us > 0 && report.stopped_us <= report.taken_us, "{report:?}");
    assert!(report.durable_us.unwrap() >= report.taken_us, "{report:?}");
    assert!(!report.stop.is_empty() && !report.write.is_empty(), "{report:?}");
    goes_on(&source);
    server.ok(&["rm", &source.id]);
    server.kill9();
    server.restart();
    assert_eq!(server.ok(&["ls", "-aq"]), "");
    for name in ["one", "two"] {
        let args = ["create", "--json", "--from", "warm", "--name", name];
        let created: Created = serde_json::from_str(&server.ok(&args)).unwrap();
        assert_eq!(created.sandbox.parent, Some(taken.snapshot.sandbox.clone()));
        let report = created.report.unwrap();
        assert!(report.read_us > 0 && report.read_us <= report.running_us, "{report:?}");
        assert_eq!(report.processes, taken.report.processes);
        let sandbox = Sandbox { server: &server, id: created.sandbox.id.to_string() };
        goes_on(&sandbox);
        assert_eq!(sandbox.say("x=other; cat /etc/hostname"), format!("{name}\n"));
    }
    let id = taken.snapshot.id.as_str();
    let third = from(&server, id);
    goes_on(&third);
    // What came of a snapshot is a sandbox like any other.
    let fork = server.ok(&["fork", &third.id]);
    goes_on(&Sandbox { server: &server, id: fork.trim().to_owned() });
    assert_eq!(snapshot(&third, &[]).snapshot.sandbox.as_str(), third.id);
    is_tidy(&server, 4, 4, 2);
}

#[test]
fn a_snapshot_is_written_while_its_sandbox_goes_on() {
    let server = TestServer::start();
    let source = counting(&server);
    let taken = snapshot(&source, &["--no-wait", "later"]);
    assert_eq!(taken.report.durable_us, None);
    goes_on(&source);
    wait_for("the snapshot", SOON, || snapshots(&server)[0].state == SnapshotState::Ready);
    let ready = &snapshots(&server)[0];
    assert!(ready.size.unwrap() > 4096 && ready.ready_at.unwrap() >= ready.created_at, "{ready:?}");
    goes_on(&from(&server, "later"));
}

#[test]
fn files_alone_are_kept_of_a_sandbox_whose_processes_are_not() {
    let server = TestServer::start();
    let source = create(&server, &["-e", "A=1", "--label", "team=x"]);
    source.say("cd /root; echo file >file; ln -s file link; rm /etc/hostname; chmod 640 file");
    source.start("sleep 1000");
    let taken = snapshot(&source, &["--files-only", "files"]);
    assert_eq!(taken.snapshot.kind, SnapshotKind::Files);
    source.say("echo later >file");
    server.ok(&["rm", &source.id]);
    for _ in 0..2 {
        let other = create(&server, &["--from", "files", "-e", "B=2"]);
        assert_eq!(other.say("cat link; stat -c %a file; echo $A $B"), "file\n640\n1 2\n");
        assert!(other.commands().is_empty());
        assert_ne!(other.exec(&["test", "-e", "/etc/hostname"]).status.code(), Some(0));
        assert_eq!(other.inspect().spec.metadata["team"], "x");
        other.say("echo mine >file");
    }
    is_tidy(&server, 2, 2, 1);
}

#[test]
fn a_paused_sandbox_goes_on_where_it_was_after_the_server_is_gone() {
    let mut server = TestServer::start();
    let id = counting(&server).id;
    for restart in [false, true] {
        let paused: Paused = serde_json::from_str(&server.ok(&["pause", "--json", &id])).unwrap();
        assert_eq!((paused.sandbox.state, paused.sandbox.pid), (State::Paused, None));
        let durable = paused.report.durable_us.unwrap();
        let stopped = paused.report.stopped_us;
        assert!(stopped > 0 && stopped <= durable, "{:?}", paused.report);
        is_tidy(&server, 1, 0, 0);
        if restart {
            server.kill9();
            server.restart();
        }
        let source = Sandbox { server: &server, id: id.clone() };
        refused(&source.exec(&["true"]), 125, "is paused");
        refused(&server.cli(&["pause", &id]), 125, "is paused");
        refused(&server.cli(&["fork", &id]), 125, "is paused");
        let out = server.ok(&["resume", "--json", &id]);
        let resumed: Resumed = serde_json::from_str(&out).unwrap();
        assert_eq!(resumed.sandbox.state, State::Running);
        assert!(resumed.report.running_us >= resumed.report.read_us, "{:?}", resumed.report);
        goes_on(&source);
        refused(&server.cli(&["resume", &id]), 125, "is running");
    }
    is_tidy(&server, 1, 1, 0);
    let source = Sandbox { server: &server, id };
    server.ok(&["reset", &source.id]);
    assert_eq!(source.say("echo ${x-gone}"), "gone\n");
}

#[test]
fn a_paused_sandbox_keeps_name_and_time_and_does_not_keep_the_server() {
    let mut server = TestServer::start();
    create(&server, &["--name", "box", "--timeout", "1h"]);
    server.ok(&["pause", "box"]);
    let inspect = |server: &TestServer| Sandbox { server, id: "box".to_owned() }.inspect().deadline;
    assert_eq!(inspect(&server), None);
    refused(&server.cli(&["create", "--name", "box"]), 125, "name taken");
    assert!(server.ok(&["ls"]).contains("paused"));
    server.ok(&["stop"]);
    server.restart();
    server.ok(&["resume", "box"]);
    let left = inspect(&server).unwrap() - forkyard_engine::clock::now();
    assert!(left > 3_500_000 && left <= 3_600_000, "{left}");
    server.ok(&["pause", "box"]);
    server.ok(&["rm", "box"]);
    is_tidy(&server, 0, 0, 0);
}

#[test]
fn a_removed_snapshot_is_gone_and_its_sandboxes_are_not() {
    let mut server = TestServer::start();
    let source = counting(&server);
    let taken = snapshot(&source, &["a"]);
    snapshot(&source, &["b"]);
    let made = from(&server, "a").id;
    server.ok(&["snapshots", "rm", "a", "b"]);
    is_tidy(&server, 2, 2, 0);
    refused(&server.cli(&["create", "--from", "a"]), 125, "no such snapshot");
    refused(&server.cli(&["snapshots", "rm", "a"]), 125, "no such snapshot");
    server.ok(&["snapshots", "rm", "-f", "a"]);
    server.kill9();
    server.restart();
    assert!(snapshots(&server).is_empty());
    goes_on(&Sandbox { server: &server, id: made });
    let (status, _) = server.get(&format!("/v1/snapshots/{}", taken.snapshot.id));
    assert_eq!(status, 404);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let server = TestServer::start();
    let source = create(&server, &["--name", "source"]);
    let taken = snapshot(&source, &["taken"]);
    for (args, text) in [
        (&["snapshot", "nobody"][..], "no such sandbox"),
        (&["snapshot", "source", "a b"], "name `a b`"),
        (&["snapshot", "source", "taken"], "name taken"),
        (&["snapshot", "source", taken.snapshot.id.as_str()], "name taken"),
        (&["create", "--from", "nothing"], "no such snapshot"),
        (&["create", "--from", "taken", "-v", "/usr:/data"], "volumes"),
        (&["create", "--from", "taken", "-e", "A=1"], "variables"),
        (&["create", "--from", "taken", "--net", "host"], "network"),
        (&["create", "--from", "taken", "--name", "source"], "name taken"),
        (&["pause", "nobody"], "no such sandbox"),
        (&["resume", "source"], "is running"),
    ] {
        refused(&server.cli(args), 125, text);
    }
    let (status, _) = server.post("/v1/run", r#"{"sandbox": {"from": "taken"}}"#);
    assert!(status == 400 || status == 426, "{status}");
    assert_eq!(source.say("echo works"), "works\n");
    is_tidy(&server, 1, 1, 1);
}

#[test]
fn an_image_stays_as_long_as_a_snapshot_needs_it() {
    let server = TestServer::start();
    let image = image_dir();
    server.ok(&["image", "import", image.path().to_str().unwrap(), "small"]);
    let source = create(&server, &["small"]);
    source.say("x=1");
    snapshot(&source, &["kept"]);
    server.ok(&["rm", &source.id]);
    refused(&server.cli(&["image", "rm", "small"]), 125, "used by snapshot");
    assert_eq!(from(&server, "kept").say("echo $x"), "1\n");
}

/// The only snapshot's directory.
#[track_caller]
fn directory(server: &TestServer) -> PathBuf {
    let mut found = fs::read_dir(server.store().join("snapshots")).unwrap();
    found.next().unwrap().unwrap().path()
}

/// Changes a byte of a file in the middle; gives back what undoes it.
#[track_caller]
fn damage(path: &Path) -> impl FnOnce() + use<> {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    move || file.write_all_at(&byte, at).unwrap()
}

#[test]
fn a_changed_byte_is_refused_wherever_it_is() {
    let server = TestServer::start();
    let source = counting(&server);
    snapshot(&source, &["taken"]);
    let dir = directory(&server);
    for part in ["header", "picture", "pages", "files/root/etc/file"] {
        let mend = damage(&dir.join(part));
        refused(&server.cli(&["create", "--from", "taken"]), 125, "damaged");
        mend();
        // The time of a file is a part of it.
        if !part.starts_with("files") {
            goes_on(&from(&server, "taken"));
        }
    }
    for part in ["header", "picture", "pages"] {
        let path = dir.join(part);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        refused(&server.cli(&["create", "--from", "taken"]), 125, "damaged");
        fs::write(&path, &whole).unwrap();
    }
    fs::remove_file(dir.join("pages")).unwrap();
    refused(&server.cli(&["create", "--from", "taken"]), 125, "damaged");
    is_tidy(&server, 4, 4, 1);
}

/// Changes the header of a snapshot, checksum and all.
#[track_caller]
fn change_header(dir: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let path = dir.join("header");
    let text = fs::read_to_string(&path).unwrap();
    let (line, json) = text.split_once('\n').unwrap();
    let format = line.split(' ').nth(2).unwrap();
    let mut header: serde_json::Value = serde_json::from_str(json).unwrap();
    change(&mut header);
    let json = serde_json::to_string(&header).unwrap();
    let sum = crc32(json.as_bytes());
    fs::write(&path, format!("forkyard snapshot {format} {sum:08x} {}\n{json}", json.len()))
        .unwrap();
}

/// CRC-32 of IEEE 802.3, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
        })
    })
}

#[test]
fn another_kernel_processor_or_kind_of_ids_is_refused_by_name() {
    let server = TestServer::start();
    let source = counting(&server);
    snapshot(&source, &["taken"]);
    let dir = directory(&server);
    let whole = fs::read(dir.join("header")).unwrap();
    let refuses = |change: &dyn Fn(&mut serde_json::Value), text: &str| {
        change_header(&dir, change);
        let out = server.cli(&["create", "--from", "taken"]);
        refused(&out, 125, text);
        assert!(stderr(&out).contains("cannot go on here"), "{}", stderr(&out));
        fs::write(dir.join("header"), &whole).unwrap();
    };
    refuses(&|header| header["host"]["release"] = "5.4.0".into(), "taken on Linux 5.4.0");
    refuses(
        &|header| header["host"]["features"].as_array_mut().unwrap().push("avx9".into()),
        "lacks avx9",
    );
    refuses(&|header| header["host"]["vendor"] = "Another".into(), "of Another");
    refuses(&|header| header["host"]["signal_frame"] = 99.into(), "vector registers");
    refuses(&|header| header["ids"] = "others".into(), "ids of the kind `others`");
    let text = String::from_utf8(whole.clone()).unwrap();
    let format = text.split(' ').nth(2).unwrap();
    let later = text.replacen(&format!("snapshot {format} "), "snapshot 999 ", 1);
    fs::write(dir.join("header"), later).unwrap();
    refused(&server.cli(&["create", "--from", "taken"]), 125, "format 999");
    fs::write(dir.join("header"), &whole).unwrap();
    goes_on(&from(&server, "taken"));
    is_tidy(&server, 2, 2, 1);
}

#[test]
fn another_file_in_the_image_is_refused_by_name() {
    let server = TestServer::start();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let source = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n";
    let Some(program) = support::static_program(dir.path(), "program", source) else {
        skip!("gcc and a static libc");
    };
    // A volume is shown as it is, and so may change, as the programs of this machine may.
    let volume = format!("{}:/data:ro", dir.path().display());
    let sandbox = create(&server, &["-v", &volume]);
    sandbox.start("exec /data/program");
    wait_for("the program", SOON, || sandbox.sh("cat /proc/[0-9]*/comm").contains("program"));
    // What was changed in the second of the snapshot may have been changed after it.
    thread::sleep(Duration::from_millis(1100));
    snapshot(&sandbox, &["taken"]);
    server.ok(&["rm", &from(&server, "taken").id]);
    fs::copy("/bin/true", &program).unwrap_or_default();
    fs::remove_file(&program).unwrap();
    fs::copy("/bin/true", &program).unwrap();
    refused(&server.cli(&["create", "--from", "taken"]), 125, "/data/program");
    is_tidy(&server, 1, 1, 1);
}

#[test]
fn files_are_kept_where_processes_cannot_be() {
    let server = TestServer::start();
    let source = create(&server, &[]);
    let dir = tempfile::tempdir().unwrap();
    let text = "#include <sys/prctl.h>\n#include <linux/seccomp.h>\n#include <linux/filter.h>\n\
        #include <stdio.h>\n#include <unistd.h>\n\
        struct sock_filter all = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);\n\
        int main(void) { struct sock_fprog own = {1, &all};\n\
        if (!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &own)) puts(\"ready\");\n\
        fflush(stdout); pause(); }\n";
    let Some(program) = support::static_program(dir.path(), "program", text) else {
        skip!("gcc and a static libc");
    };
    server.ok(&["cp", program.to_str().unwrap(), &format!("{}:/root/program", source.id)]);
    source.say("echo file >/root/file");
    let number = source.start("exec /root/program");
    wait_for("the program", SOON, || {
        server.ok(&["logs", &source.id, &number.to_string()]).contains("ready")
    });
    refused(&server.cli(&["snapshot", &source.id]), 125, "seccomp filter");
    refused(&server.cli(&["pause", &source.id]), 125, "seccomp filter");
    assert!(snapshots(&server).is_empty());
    snapshot(&source, &["files", "--files-only"]);
    assert!(source.commands()[0].exit.is_none(), "it goes on");
    assert_eq!(from(&server, "files").say("cat /root/file"), "file\n");
    is_tidy(&server, 2, 2, 1);
}

/// Asks for something, kills the server after a random time, and starts the next.
///
/// Not by the command line, which would start the next server itself.
#[track_caller]
fn kill_during(server: &mut TestServer, path: &str, body: &'static str, after: u64) {
    let http = server.http().limit(SOON);
    let path = path.to_owned();
    let asked = thread::spawn(move || {
        // It finds its server gone, or had its answer before.
        let _ = http.request("POST", &path, body);
    });
    thread::sleep(Duration::from_micros(after));
    server.kill9();
    asked.join().unwrap();
    server.restart();
}

/// Has the session of a sandbox hold some memory, so that writing it takes a while.
#[track_caller]
fn make_large(sandbox: &Sandbox<'_>) {
    sandbox.say("large=$(head -c 20000000 /dev/zero | tr '\\0' a)");
}

#[test]
fn a_server_killed_while_it_writes_leaves_a_whole_snapshot_or_none() {
    let mut server = TestServer::start();
    let mut random = Random(0x5eed_0021);
    let (mut whole, mut none) = (0, 0);
    for _ in 0..16 {
        let source = counting(&server).id;
        make_large(&Sandbox { server: &server, id: source.clone() });
        let path = format!("/v1/sandboxes/{source}/snapshot");
        kill_during(&mut server, &path, r#"{"name": "taken"}"#, random.below(200_000));
        goes_on(&Sandbox { server: &server, id: source.clone() });
        let found = snapshots(&server);
        is_tidy(&server, 1, 1, found.len());
        server.ok(&["rm", &source]);
        if found.is_empty() {
            none += 1;
            continue;
        }
        whole += 1;
        assert!(found.len() == 1 && found[0].state == SnapshotState::Ready, "{found:?}");
        let made = from(&server, "taken");
        goes_on(&made);
        assert_eq!(made.say("echo ${#large}"), "20000000\n");
        server.ok(&["rm", &made.id]);
        server.ok(&["snapshots", "rm", "taken"]);
    }
    eprintln!("{whole} whole, {none} none");
    is_tidy(&server, 0, 0, 0);
}

#[test]
fn a_server_killed_while_it_pauses_or_resumes_leaves_a_whole_sandbox() {
    let mut server = TestServer::start();
    let mut random = Random(0x5eed_0022);
    let mut counts = [0; 4];
    for _ in 0..16 {
        let id = counting(&server).id;
        make_large(&Sandbox { server: &server, id: id.clone() });
        kill_during(&mut server, &format!("/v1/sandboxes/{id}/pause"), "", random.below(300_000));
        let state = Sandbox { server: &server, id: id.clone() }.inspect().state;
        if state == State::Paused {
            counts[0] += 1;
            is_tidy(&server, 1, 0, 0);
            let path = format!("/v1/sandboxes/{id}/resume");
            kill_during(&mut server, &path, "", random.below(150_000));
            let source = Sandbox { server: &server, id: id.clone() };
            match source.inspect().state {
                State::Paused => {
                    counts[2] += 1;
                    is_tidy(&server, 1, 0, 0);
                    server.ok(&["resume", &id]);
                }
                state => {
                    counts[3] += 1;
                    assert_eq!(state, State::Running);
                }
            }
        } else {
            counts[1] += 1;
            assert_eq!(state, State::Running);
        }
        let source = Sandbox { server: &server, id };
        is_tidy(&server, 1, 1, 0);
        goes_on(&source);
        assert_eq!(source.say("echo ${#large}"), "20000000\n");
        let paused = server.store().join("sandboxes").join(&source.id).join("paused");
        wait_for("what was on disk to go", SOON, || !paused.exists());
        server.ok(&["rm", &source.id]);
    }
    let [paused, running, again, resumed] = counts;
    eprintln!("{paused} paused, {running} not; {resumed} resumed, {again} not");
    is_tidy(&server, 0, 0, 0);
}

#[test]
fn a_template_killed_while_it_writes_harms_nobody() {
    let server = TestServer::start();
    let source = counting(&server);
    make_large(&source);
    let mut random = Random(0x5eed_0023);
    for round in 0..20 {
        let what = if round % 2 == 0 { "pause" } else { "snapshot" };
        thread::scope(|scope| {
            let asked = scope.spawn(|| server.cli(&[what, &source.id]));
            while !asked.is_finished() {
                let Some(template) = support::templates(&server).into_iter().next() else {
                    continue;
                };
                thread::sleep(Duration::from_micros(random.below(120_000)));
                let pid = Pid::from_raw(template.pid.cast_signed()).unwrap();
                let _ = kill_process(pid, Signal::KILL);
                break;
            }
            asked.join().unwrap();
        });
        if source.inspect().state == State::Paused {
            is_tidy(&server, 1, 0, snapshots(&server).len());
            server.ok(&["resume", &source.id]);
        }
        goes_on(&source);
        for whole in snapshots(&server) {
            assert_eq!(whole.state, SnapshotState::Ready);
            server.ok(&["snapshots", "rm", whole.id.as_str()]);
        }
        is_tidy(&server, 1, 1, 0);
    }
    assert_eq!(source.say("echo ${#large}"), "20000000\n");
}

#[test]
fn a_full_disk_leaves_no_part_and_the_sandbox_unharmed() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let Some(program) = support::with_small_disk(dir.path(), "24m") else {
        skip!("mounts of a tmpfs");
    };
    let server = TestServer::start_program(&program, &[]);
    let source = counting(&server);
    snapshot(&source, &["small"]);
    source.say("large=$(head -c 40000000 /dev/zero | tr '\\0' a)");
    for args in [&["snapshot", &source.id, "large"][..], &["pause", &source.id]] {
        for _ in 0..2 {
            let out = server.cli(args);
            refused(&out, 125, "No space left");
            assert!(stderr(&out).contains("hint: free some space"), "{}", stderr(&out));
            goes_on(&source);
        }
    }
    let names: Vec<_> = snapshots(&server).into_iter().map(|one| one.name.unwrap()).collect();
    assert_eq!(names, ["small"]);
    source.say("unset large");
    wait_for("space", SOON, || server.cli(&["create", "--from", "small"]).status.success());
}
