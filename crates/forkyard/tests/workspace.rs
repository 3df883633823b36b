//! A directory of the host that is worked on in sandboxes, and stays as it is.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use forkyard_engine::model::{Change, Fork, WorkspaceMode};
use forkyard_testkit::{TestServer, find_program, finish, image_dir, skip};
use serde_json::json;
use support::{Sandbox, code, create, refused, stderr, stdout};
use tempfile::TempDir;

/// A directory with files of some kinds.
fn project(server: &TestServer) -> TempDir {
    let dir = tempfile::tempdir_in(server.dir()).unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("src/deep")).unwrap();
    fs::write(at("src/main"), "one\ntwo\n").unwrap();
    fs::write(at("src/deep/data"), "data\n").unwrap();
    fs::write(at("run"), "#!/bin/sh\necho ran in $PWD\n").unwrap();
    for (name, mode) in [("run", 0o755), ("", 0o700)] {
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    symlink("src/main", at("link")).unwrap();
    symlink(server.dir(), at("out")).unwrap();
    dir
}

/// All that is known of what is below a directory.
fn all(top: &Path) -> BTreeMap<PathBuf, (u32, u64, i64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![top.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            let meta = entry.metadata().unwrap();
            let bytes = match &meta {
                meta if meta.is_dir() => {
                    dirs.push(entry.path());
                    Vec::new()
                }
                meta if meta.is_file() => fs::read(entry.path()).unwrap(),
                _ => fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes(),
            };
            let facts = (meta.mode(), meta.ino(), meta.mtime(), meta.ctime_nsec(), bytes);
            found.insert(entry.path(), facts);
        }
    }
    found
}

fn worked_on<'a>(server: &'a TestServer, dir: &TempDir, options: &[&str]) -> Sandbox<'a> {
    create(server, &[&["-w", dir.path().to_str().unwrap()], options].concat())
}

#[track_caller]
fn told(sandbox: &Sandbox<'_>) -> String {
    sandbox.server.ok(&["diff", &sandbox.id])
}

/// Works on a [`project`].
const WORK: &str = "sed -i s/two/2/ src/main; rm src/deep/data; echo new >src/new; chmod 700 run";

/// What comes of [`WORK`].
const WORKED: &str = "\
M /workspace/run   (mode 0755 to 0700)
D /workspace/src/deep/data
M /workspace/src/main
A /workspace/src/new
";

#[test]
fn what_is_written_in_a_workspace_stays_in_the_sandbox() {
    let server = TestServer::start();
    let dir = project(&server);
    let before = all(dir.path());
    let sandbox = worked_on(&server, &dir, &[]);
    assert_eq!(told(&sandbox), "");
    assert_eq!(sandbox.sh("pwd; cat link; ./run"), "/workspace\none\ntwo\nran in /workspace\n");
    assert_eq!(sandbox.say("pwd"), "/workspace\n");
    sandbox.sh(WORK);
    assert_eq!(told(&sandbox), WORKED);
    sandbox.sh("rm -r src; mkdir src; echo file >src/only; touch src/deep");
    let said = told(&sandbox);
    assert!(said.contains("T /workspace/src/deep   (directory to file)\n"), "{said}");
    assert_eq!(all(dir.path()), before, "of the host's directory nothing was changed");
    server.ok(&["reset", &sandbox.id]);
    assert_eq!(sandbox.sh("cat src/deep/data"), "data\n");
    assert_eq!(told(&sandbox), "");
    server.ok(&["rm", &sandbox.id]);
    assert_eq!(all(dir.path()), before);
}

#[test]
fn owners_are_those_of_the_directory() {
    let server = TestServer::start();
    let dir = project(&server);
    let sandbox = worked_on(&server, &dir, &[]);
    // The user who works on it is root of the sandbox.
    assert_eq!(sandbox.sh("stat -c '%u:%g %a' . src/main run"), "0:0 700\n0:0 644\n0:0 755\n");
    assert_eq!(told(&sandbox), "");
    sandbox.sh("echo x >>src/main; echo x >new; mkdir -p a/b");
    let said = server.ok(&["diff", "--json", &sandbox.id]);
    let changes: Vec<Change> = serde_json::from_str(&said).unwrap();
    let owners: Vec<_> = changes.iter().map(|c| c.new.as_ref().map(|n| (n.uid, n.gid))).collect();
    assert_eq!(owners, vec![Some((0, 0)); 4], "{changes:?}");
    if !forkyard_testkit::is_root() {
        return;
    }
    // Other owners are as they are, too.
    for path in ["src/main", ""] {
        std::os::unix::fs::chown(dir.path().join(path), Some(1234), Some(99)).unwrap();
    }
    let sandbox = worked_on(&server, &dir, &[]);
    sandbox.sh("echo y >>src/main");
    assert_eq!(sandbox.sh("stat -c '%u:%g %a' . src/main"), "1234:99 700\n1234:99 644\n");
    assert_eq!(told(&sandbox), "M /workspace/src/main\n");
    sandbox.sh("chmod 711 .");
    let clone = server.ok(&["fork", "--json", &sandbox.id]);
    let clone: Fork = serde_json::from_str(&clone).unwrap();
    let clone = Sandbox { server: &server, id: clone.clones[0].id.to_string() };
    assert_eq!(clone.sh("stat -c '%u:%g %a' ."), "1234:99 711\n");
    let said = "M /workspace/   (mode 0700 to 0711)\nM /workspace/src/main\n";
    assert_eq!((told(&clone).as_str(), told(&sandbox).as_str()), (said, said));
}

#[test]
fn a_workspace_may_be_elsewhere_written_to_at_once_or_not_at_all() {
    let server = TestServer::start();
    let dir = project(&server);
    let path = dir.path().to_str().unwrap();
    let run = |workspace: &str, line: &str| server.cli(&["run", "-w", workspace, "-c", line]);
    let out = run(&format!("{path}:/home/user/work"), "pwd; cat src/deep/data; echo x >src/new");
    assert_eq!(stdout(&out), "/home/user/work\ndata\n", "{}", stderr(&out));
    assert!(!dir.path().join("src/new").exists());
    let out = run(&format!("{path}:rw"), "echo written >src/new");
    assert_eq!(code(&out), 0, "{}", stderr(&out));
    assert_eq!(fs::read_to_string(dir.path().join("src/new")).unwrap(), "written\n");
    let out = run(&format!("{path}:ro"), "cat src/new; echo again >src/new");
    assert_eq!(stdout(&out), "written\n");
    assert!(code(&out) != 0 && stderr(&out).contains("Read-only"), "{}", stderr(&out));
    let sandbox = create(&server, &["-w", &format!("{path}:rw"), "--workdir", "/srv"]);
    assert_eq!(sandbox.sh("pwd; echo x >/workspace/x"), "/srv\n");
    assert_eq!(told(&sandbox), "", "what is on the host is no change of the sandbox's");
    let spec = sandbox.inspect().spec.workspace.unwrap();
    assert_eq!((spec.source.as_str(), spec.mode), (path, WorkspaceMode::Rw));
    let card = server.ok(&["inspect", &sandbox.id]);
    assert!(card.contains(&format!("{path}:/workspace:rw")), "{card}");
}

#[test]
fn an_image_gets_a_place_for_a_workspace_and_volumes_may_lie_in_it() {
    let server = TestServer::start();
    let dir = project(&server);
    let image = image_dir();
    server.ok(&["image", "import", image.path().to_str().unwrap(), "small"]);
    let cache = tempfile::tempdir_in(server.dir()).unwrap();
    let volume = format!("{}:/work/on/it/cache/here", cache.path().display());
    let workspace = format!("{}:/work/on/it", dir.path().display());
    let sandbox = create(&server, &["small", "-w", &workspace, "-v", &volume]);
    assert_eq!(told(&sandbox), "");
    sandbox.sh("echo x >cache/here/x; echo new >new");
    assert_eq!(told(&sandbox), "A /work/on/it/new\n");
    assert_eq!(fs::read_to_string(cache.path().join("x")).unwrap(), "x\n");
    assert!(!dir.path().join("cache").exists());
}

#[test]
fn links_in_a_workspace_lead_to_the_sandboxs_own_files() {
    let server = TestServer::start();
    let dir = project(&server);
    fs::write(server.dir().join("secret"), "the host's").unwrap();
    let sandbox = worked_on(&server, &dir, &[]);
    let out = sandbox.exec(&["cat", "out/secret"]);
    assert!(code(&out) == 1 && stderr(&out).contains("No such file"), "{}", stderr(&out));
    let out = sandbox.exec(&["sh", "-c", "ls -a ..; cat ../../secret"]);
    assert!(!stdout(&out).contains("secret") && code(&out) == 1, "{}", stdout(&out));
}

#[test]
fn clones_work_on_the_same_directory_each_for_itself() {
    let server = TestServer::start();
    let dir = project(&server);
    let before = all(dir.path());
    let source = worked_on(&server, &dir, &[]);
    source.sh(WORK);
    let appends = source.start("while sleep 0.02; do echo line >>log; done");
    source.sh("until [ -s log ]; do sleep 0.01; done");
    source.say("cd src; exec 5<main; read -r first <&5");
    let forked = |sandbox: &Sandbox<'_>| {
        let said = server.ok(&["fork", "--json", "-n", "2", &sandbox.id]);
        let fork: Fork = serde_json::from_str(&said).unwrap();
        fork.clones.iter().map(|c| Sandbox { server: &server, id: c.id.to_string() }).collect()
    };
    let look = |clones: Vec<Sandbox<'_>>| {
        for (number, clone) in clones.iter().enumerate() {
            assert_eq!(clone.say("pwd; echo $first; cat <&5"), "/workspace/src\none\n2\n");
            clone.sh(&format!("echo {number} >mine; echo {number} >src/main"));
            assert_eq!(clone.sh("cat mine src/main src/new"), format!("{number}\n{number}\nnew\n"));
            let said = told(clone);
            assert!(said.contains("A /workspace/mine\n") && said.contains("A /workspace/log\n"));
            server.ok(&["reset", &clone.id]);
            assert_eq!(clone.sh("cat src/main; ls mine log 2>/dev/null || true"), "one\ntwo\n");
        }
    };
    look(forked(&source));
    // More than each clone has a copy of.
    source.sh("dd if=/dev/zero of=much bs=1M count=20 2>/dev/null");
    look(forked(&source));
    server.ok(&["kill", &source.id, &appends.to_string()]);
    assert!(!told(&source).contains("mine"));
    assert_eq!(all(dir.path()), before);
}

#[test]
fn a_workspace_is_there_after_snapshots_pauses_and_servers() {
    let mut server = TestServer::start();
    let dir = project(&server);
    let sandbox = worked_on(&server, &dir, &["--name", "box"]);
    sandbox.sh(WORK);
    sandbox.say("cd src");
    server.ok(&["pause", "box"]);
    assert_eq!(told(&sandbox), WORKED);
    server.ok(&["resume", "box"]);
    assert_eq!(
        (sandbox.say("pwd").as_str(), told(&sandbox).as_str()),
        ("/workspace/src\n", WORKED)
    );
    for (name, options) in [("warm", &[][..]), ("files", &["--files-only"])] {
        server.ok(&[&["snapshot", "box", name], options].concat());
        let other = create(&server, &["--from", name]);
        assert_eq!((other.sh("cat src/new").as_str(), told(&other).as_str()), ("new\n", WORKED));
        let again = server.cli(&["create", "--from", name, "-w", "/srv"]);
        refused(&again, 125, "workspace: it is what it was when the snapshot was taken");
    }
    server.kill9();
    server.restart();
    let sandbox = Sandbox { server: &server, id: "box".to_owned() };
    assert_eq!(told(&sandbox), WORKED);
    sandbox.sh("echo more >more");
    assert!(told(&sandbox).starts_with("A /workspace/more\n"));
}

#[test]
fn git_applies_the_patch_of_a_workspace_to_its_directory() {
    if find_program("git").is_none() {
        skip!("git");
    }
    let server = TestServer::start();
    let dir = project(&server);
    let sandbox = worked_on(&server, &dir, &[]);
    sandbox.sh(&format!("{WORK}; echo elsewhere >/srv/elsewhere; mv link other"));
    let patch = server.cli(&["diff", "-p", &sandbox.id]);
    assert!(!stdout(&patch).contains("elsewhere"), "{}", stdout(&patch));
    let some = server.ok(&["diff", "-p", &sandbox.id, "/workspace/src/new", "/srv"]);
    assert!(some.contains("+++ b/src/new\n") && some.contains("+++ b/srv/elsewhere\n"), "{some}");
    let mut git = Command::new("git");
    git.args(["apply", "-"]).current_dir(dir.path());
    git.env("GIT_CEILING_DIRECTORIES", server.dir());
    let applied = finish(&mut git, &patch.stdout);
    assert!(applied.status.success(), "{}\n{}", stderr(&applied), stdout(&patch));
    assert_eq!(fs::read_to_string(dir.path().join("src/main")).unwrap(), "one\n2\n");
    assert!(!dir.path().join("src/deep/data").exists() && dir.path().join("src/new").exists());
    assert_eq!(fs::read_link(dir.path().join("other")).unwrap(), Path::new("src/main"));
}

#[test]
fn workspaces_that_cannot_be_are_refused_with_the_reason() {
    let server = TestServer::start();
    let dir = project(&server);
    let path = dir.path().to_str().unwrap();
    let store = server.store().to_str().unwrap();
    let cases = [
        ("/".to_owned(), "all of this machine"),
        (store.to_owned(), "the store is in it"),
        (format!("{store}/images"), "it is in the store"),
        (server.dir().to_str().unwrap().to_owned(), "the store is in it"),
        (format!("{path}/none"), "No such file"),
        (format!("{path}/run"), "not a directory"),
        (format!("{path}:/"), "the root cannot be covered"),
        (format!("{path}:/proc/x"), "something else is mounted over it"),
        (format!("{path}:/tmp/x"), "something else is mounted over it"),
        (format!("{path}:/a/../b"), "has a `..`"),
        (format!("{path}:here"), "is no workspace"),
    ];
    for (workspace, text) in cases {
        refused(&server.cli(&["create", "-w", &workspace]), 125, text);
    }
    let covered = ["create", "-w", &format!("{path}:/data/x"), "-v", &format!("{path}:/data")];
    refused(&server.cli(&covered), 125, "a volume would cover it");
    let body = json!({ "workspace": { "source": "relative" } }).to_string();
    let (status, body) = server.post("/v1/sandboxes", body);
    assert_eq!(status, 400, "{}", String::from_utf8_lossy(&body));
    let body = json!({ "workspace": { "source": path } }).to_string();
    let (status, body) = server.post("/v1/sandboxes", body);
    assert_eq!(status, 201, "{}", String::from_utf8_lossy(&body));
    assert_eq!(server.ok(&["ls", "-q"]).lines().count(), 1);
}
