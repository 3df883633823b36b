//! What a sandbox changed: told of what runs, is paused or has ended, of clones, and of guests that
//! do not want it told.

#![allow(clippy::unwrap_used)]

#[path = "support/pty.rs"]
mod pty;
mod support;

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use forkyard_engine::model::{Change, ChangeKind, FileKind};
use forkyard_testkit::{ImageDir, TestServer, find_program, finish, image_dir, skip, wait_for};
use pty::Pty;
use support::{SOON, Sandbox, code, create, refused, stderr, stdout};

/// A sandbox of an image whose files it may change, in every mode.
#[track_caller]
fn small<'a>(server: &'a TestServer, image: &ImageDir, options: &[&str]) -> Sandbox<'a> {
    server.ok(&["image", "import", image.path().to_str().unwrap(), "small"]);
    create(server, &[&["small"], options].concat())
}

fn image() -> ImageDir {
    let image = image_dir();
    image.file("/srv/app/main", "one\ntwo\nthree\n", 0o755);
    image.file("/srv/app/data", "data\n", 0o644);
    image.file("/srv/app/old/name", "moved and the same\n", 0o644);
    image.file("/srv/gone/a", "a\n", 0o644);
    image.file("/srv/gone/b/c", "c\n", 0o644);
    image
}

const WRITE: &str = "
    cd /srv; sed -i s/two/2/ app/main; chmod 600 app/data; mv app/old/name app/new; rm -r gone
    ln -s app link; mkdir empty; printf 'a\\0b' >bin; touch app/main; mkdir -p x/y; rm -r x";

/// What comes of [`WRITE`].
const WRITTEN: &str = "\
M /srv/app/data   (mode 0644 to 0600)
M /srv/app/main
R /srv/app/old/name -> /srv/app/new
A /srv/bin
A /srv/empty/
D /srv/gone/
D /srv/gone/a
D /srv/gone/b/
D /srv/gone/b/c
A /srv/link
";

#[track_caller]
fn told(sandbox: &Sandbox<'_>) -> String {
    sandbox.server.ok(&["diff", &sandbox.id])
}

#[track_caller]
fn changes(sandbox: &Sandbox<'_>, paths: &[&str]) -> Vec<Change> {
    let args = [&["diff", "--json", sandbox.id.as_str()], paths].concat();
    serde_json::from_str(&sandbox.server.ok(&args)).unwrap()
}

#[test]
fn what_a_new_sandbox_is_made_with_is_no_change() {
    let server = TestServer::start();
    let image = image();
    let data = tempfile::tempdir_in(server.dir()).unwrap();
    let volume = format!("{}:/made/for/volume", data.path().display());
    let sandbox = small(&server, &image, &["-v", &volume, "--label", "a=b"]);
    assert_eq!(told(&sandbox), "");
    for form in ["--patch", "--stat", "--name-only", "--json"] {
        let said = server.ok(&["diff", form, &sandbox.id]);
        assert_eq!(said, if form == "--json" { "[]\n" } else { "" }, "{form}");
    }
    sandbox.sh("echo x >/made/for/volume/x; echo x >/tmp/x; echo x >/dev/shm/x");
    assert_eq!(told(&sandbox), "");
    let host = create(&server, &[]);
    assert_eq!(told(&host), "");
    // Copied up, where that may be done.
    host.sh("touch /usr/bin/env /etc/passwd 2>/dev/null || true");
    assert_eq!(told(&host), "");
}

#[test]
fn every_kind_of_change_is_told_in_each_form() {
    let server = TestServer::start();
    let image = image();
    let sandbox = small(&server, &image, &[]);
    sandbox.sh(WRITE);
    assert_eq!(told(&sandbox), WRITTEN);
    let names = server.ok(&["diff", "--name-only", &sandbox.id, "/srv/app", "/srv/./link/"]);
    assert_eq!(names, "/srv/app/data\n/srv/app/main\n/srv/app/new\n/srv/link\n");
    let stat = server.ok(&["diff", "--stat", &sandbox.id]);
    for line in [
        " /srv/app/main                     |   2 +-\n",
        " /srv/app/old/name -> /srv/app/new |   0\n",
        " /srv/bin                          | Bin 0 -> 3 bytes\n",
        " 7 files changed, 2 insertions(+), 3 deletions(-)\n",
    ] {
        assert!(stat.contains(line), "{line}not in\n{stat}");
    }
    let all = changes(&sandbox, &[]);
    let at = |path: &str| all.iter().find(|change| change.path.path == path).unwrap();
    assert_eq!(at("/srv/app/data").old.as_ref().unwrap().mode, 0o644);
    assert_eq!(at("/srv/app/data").new.as_ref().unwrap().mode, 0o600);
    assert_eq!(at("/srv/app/new").change, ChangeKind::Renamed);
    assert_eq!(at("/srv/app/new").from.as_ref().unwrap().path, "/srv/app/old/name");
    assert!(at("/srv/bin").binary && !at("/srv/app/main").binary);
    assert_eq!(at("/srv/empty").new.as_ref().unwrap().kind, FileKind::Directory);
    assert_eq!(at("/srv/link").new.as_ref().unwrap().target.as_ref().unwrap().path, "app");
    server.ok(&["reset", &sandbox.id]);
    assert_eq!(told(&sandbox), "");
}

#[test]
fn git_applies_the_patch_to_what_the_image_has() {
    if find_program("git").is_none() {
        skip!("git");
    }
    let server = TestServer::start();
    let image = image();
    let sandbox = small(&server, &image, &[]);
    sandbox.sh(WRITE);
    sandbox.sh("cd /srv; printf 'no end' >'a b'; rm app/main; mkdir app/main; echo x >app/main/x");
    let patch = server.cli(&["diff", "--patch", &sandbox.id]);
    assert_eq!(code(&patch), 0, "{}", stderr(&patch));
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    let from = image.path().join("srv");
    fs::create_dir(&copy).unwrap();
    let cp = |from: &str, to: &str| finish(Command::new("cp").args(["-a", from, to]), b"");
    assert!(cp(from.to_str().unwrap(), copy.to_str().unwrap()).status.success());
    let mut git = Command::new("git");
    git.args(["apply", "-"]).current_dir(&copy).env("GIT_CEILING_DIRECTORIES", dir.path());
    let applied = finish(&mut git, &patch.stdout);
    assert!(applied.status.success(), "{}\n{}", stderr(&applied), stdout(&patch));
    let there = dir.path().join("there");
    server.ok(&["cp", &format!("{}:/srv", sandbox.id), there.to_str().unwrap()]);
    // git knows neither empty directories nor all of a mode.
    let mut compare = Command::new("diff");
    compare.args(["-r", "--no-dereference"]).arg(copy.join("srv")).arg(&there);
    let compared = finish(&mut compare, b"");
    let there = there.display();
    let empty = format!("Only in {there}/app: old\nOnly in {there}: empty\n");
    assert_eq!(stdout(&compared), empty);
}

#[test]
fn changes_are_told_of_clones_and_of_what_goes_on_from_a_snapshot() {
    let server = TestServer::start();
    let image = image();
    let source = small(&server, &image, &[]);
    source.sh(WRITE);
    let clone = |options: &[&str]| {
        let args = [&["fork", "--json", source.id.as_str()], options].concat();
        let fork: forkyard_engine::model::Fork = serde_json::from_str(&server.ok(&args)).unwrap();
        Sandbox { server: &server, id: fork.clones[0].id.to_string() }
    };
    let few = clone(&[]);
    assert_eq!(told(&few), WRITTEN, "copied with what is in its own directory");
    // More than each clone has a copy of.
    source.sh("dd if=/dev/zero of=/srv/much bs=1M count=20 2>/dev/null");
    let many = clone(&[]);
    let much = format!("{WRITTEN}A /srv/much\n");
    assert_eq!(told(&many), much, "shared with its original");
    many.sh("rm /srv/much; echo data >/srv/app/data; chmod 644 /srv/app/data; echo text >/srv/bin");
    let undone = WRITTEN.replace("M /srv/app/data   (mode 0644 to 0600)\n", "");
    assert_eq!(told(&many), undone, "what was undone is no change");
    server.ok(&["snapshot", &source.id, "kept"]);
    let later = create(&server, &["--from", "kept"]);
    assert_eq!(told(&later), much);
    server.ok(&["reset", &later.id]);
    assert_eq!(told(&later), "");
    assert_eq!(told(&source), much);
}

#[test]
fn changes_are_told_when_nothing_runs_and_by_the_next_server() {
    let mut server = TestServer::start();
    let image = image();
    let id = {
        let sandbox = small(&server, &image, &["--name", "box"]);
        sandbox.sh(WRITE);
        server.ok(&["pause", &sandbox.id]);
        assert_eq!(told(&sandbox), WRITTEN, "paused");
        server.ok(&["resume", &sandbox.id]);
        assert_eq!(told(&sandbox), WRITTEN, "resumed");
        sandbox.id
    };
    server.kill9();
    server.restart();
    let sandbox = Sandbox { server: &server, id };
    assert_eq!(told(&sandbox), WRITTEN, "taken over");
    let path = sandbox.path("/timeout");
    assert_eq!(server.post(&path, r#"{"timeout_ms": 1}"#).0, 200);
    assert_eq!(sandbox.wait_ended(), "deadline");
    assert_eq!(told(&sandbox), WRITTEN, "ended");
    server.ok(&["rm", &sandbox.id]);
    refused(&server.cli(&["diff", &sandbox.id]), 125, "no such sandbox");
}

#[test]
fn questions_that_make_no_sense_are_refused() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    refused(&server.cli(&["diff", "nobody"]), 125, "no such sandbox: nobody");
    for path in ["srv", "", "/srv/../etc"] {
        refused(&server.cli(&["diff", &sandbox.id, path]), 125, "must be an absolute path");
    }
    refused(&server.cli(&["diff", &sandbox.id, "--stat", "--json"]), 125, "cannot be used with");
    refused(&server.cli(&["diff", &sandbox.id, "-z"]), 125, "--name-only");
    for (query, text) in [("form=long", "list, stat or patch"), ("paths=/", "means nothing")] {
        let (status, body) = server.get(&sandbox.path(&format!("/diff?{query}")));
        let body = String::from_utf8_lossy(&body).into_owned();
        assert!(status == 400 && body.contains(text), "{status} {body}");
    }
}

#[test]
fn names_and_contents_of_a_guests_choice_reach_programs_as_they_are_and_people_escaped() {
    let server = TestServer::start();
    let image = image();
    let sandbox = small(&server, &image, &[]);
    sandbox
        .sh("mkdir /n; cd /n; printf '\\033[2Jwiped\\n' >text; touch \"$(printf 'new\\nline')\" \
         \"$(printf 'bad\\377')\" \"$(printf 'esc\\033[31m')\" 'quo\"te'");
    let names = server.cli(&["diff", "--name-only", "-z", &sandbox.id, "/n"]).stdout;
    let expected = b"/n\0/n/bad\xff\0/n/esc\x1b[31m\0/n/new\nline\0/n/quo\"te\0/n/text\0";
    assert_eq!(names, expected);
    let lines = told(&sandbox);
    let expected = "A /n/\nA \"/n/bad\\377\"\nA \"/n/esc\\033[31m\"\nA \"/n/new\\nline\"\n\
                    A \"/n/quo\\\"te\"\nA /n/text\n";
    assert_eq!(lines, expected);
    let raw: Vec<Vec<u8>> = changes(&sandbox, &[]).iter().map(|c| c.path.bytes()).collect();
    assert!(raw.contains(&b"/n/bad\xff".to_vec()), "{raw:?}");
    let patch = server.cli(&["diff", "-p", &sandbox.id, "/n/text"]).stdout;
    assert!(String::from_utf8_lossy(&patch).contains("+\x1b[2Jwiped\n"));
    // On a terminal, through a pager that shows what it gets.
    let mut command = server.command(&["diff", "-p", &sandbox.id, "/n/text"]);
    command.env("PAGER", "sed s/^/paged:/").env_remove("NO_COLOR");
    let (status, shown) = Pty::start(&command).finish();
    assert!(status.success(), "{shown}");
    assert!(shown.contains("paged:\x1b[32m+\\u{1b}[2Jwiped\x1b[0m"), "{shown:?}");
    assert!(!shown.contains("\x1b[2J"), "{shown:?}");
    let mut command = server.command(&["diff", &sandbox.id, "/n"]);
    let (_, shown) = Pty::start(command.env("PAGER", "cat").env("NO_COLOR", "1")).finish();
    assert!(shown.contains("A /n/text") && !shown.contains('\x1b'), "{shown:?}");
}

#[test]
fn a_guest_that_swaps_files_while_they_are_read_shows_nothing_of_the_host() {
    let server = TestServer::start();
    let image = image();
    let sandbox = small(&server, &image, &[]);
    let secret = server.dir().join("secret");
    fs::write(&secret, "a secret of the host\n").unwrap();
    let number = sandbox.start(&format!(
        "cd /srv; while :; do mkdir d; echo x >d/f; echo y >f; rm -r d; ln -s {host} d; rm f; \
         ln -s {secret} f; rm d f; mkfifo f; rm f; done",
        host = server.dir().display(),
        secret = secret.display()
    ));
    let end = Instant::now() + Duration::from_secs(3);
    let mut rounds = 0;
    while Instant::now() < end || rounds < 20 {
        let patch = server.cli(&["diff", "-p", &sandbox.id]);
        assert_eq!(code(&patch), 0, "{} {}", stderr(&patch), server.log());
        assert!(!String::from_utf8_lossy(&patch.stdout).contains("a secret of the host"));
        rounds += 1;
    }
    server.ok(&["kill", &sandbox.id, &number.to_string()]);
    sandbox.wait(number);
}

#[test]
fn one_who_goes_away_in_the_middle_leaves_nothing_running() {
    let server = TestServer::start();
    let image = image();
    let sandbox = small(&server, &image, &[]);
    sandbox.sh("mkdir /many; cd /many; for n in $(seq 40); do seq 100000 >$n; done");
    let before = server.processes().len();
    for _ in 0..3 {
        // 23 MB that nobody reads.
        let mut command = server.command(&["diff", "-p", &sandbox.id]);
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut first = [0; 10];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
        assert_eq!(&first, b"diff --git");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // It may be removed while somebody reads.
    let mut command = server.command(&["diff", "-p", &sandbox.id]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    thread::sleep(Duration::from_millis(50));
    server.ok(&["rm", &sandbox.id]);
    drop(child.stdout.take());
    child.wait().unwrap();
    wait_for("the ends of those that read", SOON, || server.processes().len() <= before);
}
