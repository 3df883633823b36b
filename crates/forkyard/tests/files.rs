//! Files of a sandbox: by the API and by `forkyard cp`.

#![allow(clippy::unwrap_used)]

mod support;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use bytes::Bytes;
use forkyard_api::routes::{FileInfo, FileKind};
use forkyard_testkit::{TestServer, skip};
use serde_json::Value;
use support::{Sandbox, code, counted, create, refused, stderr, stdout};

/// Percent-encodes what does not stand for itself in a query.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    let one = |byte: u8| {
        if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(one).collect()
}

/// A request on a file: its status and body.
#[track_caller]
fn ask(sandbox: &Sandbox<'_>, method: &str, what: &str, query: &str, body: Bytes) -> (u16, Bytes) {
    let http = sandbox.server.http().limit(Duration::from_secs(120));
    http.request(method, &sandbox.path(&format!("/{what}?{query}")), body).unwrap()
}

#[track_caller]
fn write(sandbox: &Sandbox<'_>, path: &str, contents: &[u8]) {
    let query = format!("path={}", encoded(path));
    let (status, why) = ask(sandbox, "PUT", "files", &query, Bytes::copy_from_slice(contents));
    assert_eq!(status, 204, "{path}: {}", String::from_utf8_lossy(&why));
}

#[track_caller]
fn read(sandbox: &Sandbox<'_>, path: &str) -> Bytes {
    let query = format!("path={}", encoded(path));
    let (status, body) = ask(sandbox, "GET", "files", &query, Bytes::new());
    assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
    body
}

#[track_caller]
fn stat(sandbox: &Sandbox<'_>, path: &str) -> FileInfo {
    let query = format!("path={}", encoded(path));
    let (status, body) = ask(sandbox, "GET", "stat", &query, Bytes::new());
    assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

/// Asserts that a request fails with this status and a message that has `text` in it.
#[track_caller]
fn fails(sandbox: &Sandbox<'_>, request: (&str, &str, &str), status: u16, text: &str) {
    let (method, what, query) = request;
    let body = if what == "files" && method == "PUT" { Bytes::from("x") } else { Bytes::new() };
    let (got, body) = ask(sandbox, method, what, query, body);
    let error: Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = error["message"].as_str().unwrap_or_default();
    assert!(got == status && message.contains(text), "{request:?}: {got} {message}");
}

/// `forkyard cp FROM TO`.
#[track_caller]
fn cp(server: &TestServer, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> Output {
    server.cli(&[OsStr::new("cp"), from.as_ref(), to.as_ref()])
}

#[track_caller]
fn copied(out: &Output) {
    assert_eq!((code(out), stderr(out).as_str()), (0, ""));
}

fn inside(sandbox: &Sandbox<'_>, path: &str) -> OsString {
    format!("{}:{path}", sandbox.id).into()
}

/// Everything of a directory tree: path, kind and permissions, contents or target.
fn tree(top: &Path) -> Vec<(Vec<u8>, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut unread = vec![top.to_owned()];
    while let Some(path) = unread.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let contents = if meta.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_vec()
        } else if meta.is_dir() {
            unread.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else {
            fs::read(&path).unwrap()
        };
        let name = path.strip_prefix(top).unwrap().as_os_str().as_bytes().to_vec();
        found.push((name, meta.mode(), contents));
    }
    found.sort();
    found
}

#[test]
fn files_are_written_read_appended_and_removed() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
    write(&sandbox, "/tmp/file", &bytes);
    assert_eq!(read(&sandbox, "/tmp/file"), bytes);
    assert_eq!(sandbox.sh("wc -c </tmp/file"), "5000\n");
    write(&sandbox, "/tmp/file", b"short");
    assert_eq!(read(&sandbox, "/tmp/file"), "short");
    let (status, _) = ask(&sandbox, "PUT", "files", "path=/tmp/file&append=true", "er".into());
    assert_eq!((status, &read(&sandbox, "/tmp/file")[..]), (204, &b"shorter"[..]));
    let (status, _) = ask(&sandbox, "PUT", "files", "path=/tmp/new&mode=0751", "x".into());
    assert_eq!((status, stat(&sandbox, "/tmp/new").mode & 0o7777), (204, 0o751));
    write(&sandbox, "/tmp/empty", b"");
    assert_eq!(read(&sandbox, "/tmp/empty"), "");
    // What is below no directory needs to be asked for.
    fails(&sandbox, ("PUT", "files", "path=/tmp/a/b/c"), 404, "/tmp/a/b");
    let (status, _) = ask(&sandbox, "PUT", "files", "path=/tmp/a/b/c&parents=true", "x".into());
    assert_eq!((status, &read(&sandbox, "/tmp/a/b/c")[..]), (204, &b"x"[..]));
    let (status, _) = ask(&sandbox, "DELETE", "files", "path=/tmp/file", Bytes::new());
    assert_eq!(status, 204);
    fails(&sandbox, ("GET", "files", "path=/tmp/file"), 404, "/tmp/file");
    // Relative paths are from the sandbox's working directory.
    write(&sandbox, "relative", b"here");
    assert_eq!(sandbox.sh("cat relative"), "here");
}

#[test]
fn large_files_pass_whole_and_in_bounded_memory() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let contents = counted(64 << 20);
    let before = support::resident(server.pid().unwrap());
    let init = sandbox.inspect().pid.unwrap();
    let init_before = support::resident(init);
    write(&sandbox, "/root/large", &contents);
    assert!(read(&sandbox, "/root/large") == contents);
    let after = support::resident(server.pid().unwrap());
    assert!(after < before + (16 << 20), "the server grew from {before} to {after}");
    let after = support::resident(init);
    assert!(after < init_before + (2 << 20), "init grew from {init_before} to {after}");
    let sum = sandbox.sh("cksum </root/large");
    let host = server.dir().join("large");
    copied(&cp(&server, inside(&sandbox, "/root/large"), &host));
    assert!(fs::read(&host).unwrap() == contents);
    copied(&cp(&server, &host, inside(&sandbox, "/root/again")));
    assert_eq!(sandbox.sh("cksum </root/again"), sum);
}

#[test]
fn what_is_known_of_a_file_is_told() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    sandbox.sh("cd /tmp; mkdir d; echo abc >d/f; chmod 640 d/f; ln -s ../x d/l; mkfifo d/p; \
         touch -d @1000000000 d/f; mkdir d/sub; echo >d/sub/deep");
    let file = stat(&sandbox, "/tmp/d/f");
    assert_eq!((file.kind, file.size, file.mode & 0o7777), (FileKind::File, 4, 0o640));
    assert_eq!((file.uid, file.gid, file.modified_at), (0, 0, 1_000_000_000_000));
    assert_eq!((file.path.as_str(), file.name.as_str()), ("/tmp/d/f", "f"));
    let link = stat(&sandbox, "/tmp/d/l");
    assert_eq!((link.kind, link.target.as_deref()), (FileKind::Symlink, Some("../x")));
    assert_eq!(stat(&sandbox, "/tmp/d/p").kind, FileKind::Other);
    assert_eq!(stat(&sandbox, "/tmp/d").kind, FileKind::Directory);
    let list = |query: &str| {
        let (status, body) = ask(&sandbox, "GET", "list", query, Bytes::new());
        assert_eq!(status, 200);
        let all: Vec<FileInfo> = serde_json::from_slice(&body).unwrap();
        let mut paths: Vec<_> = all.into_iter().map(|info| info.path).collect();
        paths.sort();
        paths
    };
    assert_eq!(list("path=/tmp/d"), ["/tmp/d/f", "/tmp/d/l", "/tmp/d/p", "/tmp/d/sub"]);
    assert_eq!(list("path=/tmp/d&depth=2").len(), 5);
    fails(&sandbox, ("GET", "list", "path=/tmp/d&depth=0"), 400, "depth");
    fails(&sandbox, ("GET", "list", "path=/tmp/d/f"), 400, "/tmp/d/f");
    fails(&sandbox, ("GET", "list", "path=/nowhere"), 404, "/nowhere");
}

#[test]
fn a_directory_of_ten_thousand_files_is_listed_and_removed() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    sandbox
        .sh("mkdir /tmp/many; cd /tmp/many; seq -f 'a-rather-long-name-%.0f' 10000 | xargs touch");
    let (status, body) = ask(&sandbox, "GET", "list", "path=/tmp/many", Bytes::new());
    assert_eq!(status, 200);
    assert_eq!(serde_json::from_slice::<Vec<FileInfo>>(&body).unwrap().len(), 10_000);
    fails(&sandbox, ("DELETE", "files", "path=/tmp/many"), 400, "not empty");
    let remove = "path=/tmp/many&recursive=true";
    assert_eq!(ask(&sandbox, "DELETE", "files", remove, Bytes::new()).0, 204);
    fails(&sandbox, ("GET", "stat", "path=/tmp/many"), 404, "/tmp/many");
}

#[test]
fn directories_are_made_and_things_moved_and_copied() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let post = |what: &str, query: &str| ask(&sandbox, "POST", what, query, Bytes::new()).0;
    assert_eq!(post("mkdir", "path=/tmp/a&mode=0700"), 204);
    assert_eq!(stat(&sandbox, "/tmp/a").mode & 0o7777, 0o700);
    fails(&sandbox, ("POST", "mkdir", "path=/tmp/a"), 409, "/tmp/a");
    fails(&sandbox, ("POST", "mkdir", "path=/tmp/b/c"), 404, "/tmp/b");
    fails(&sandbox, ("POST", "mkdir", "path=/tmp/x&mode=999"), 400, "mode");
    assert_eq!(post("mkdir", "path=/tmp/b/c&parents=true"), 204);
    write(&sandbox, "/tmp/b/c/f", b"moved");
    assert_eq!(post("move", "from=/tmp/b&to=/tmp/a/b"), 204);
    assert_eq!(read(&sandbox, "/tmp/a/b/c/f"), "moved");
    assert_eq!(post("copy", "from=/tmp/a&to=/root/copy&recursive=true"), 204);
    assert_eq!(read(&sandbox, "/root/copy/b/c/f"), "moved");
    fails(&sandbox, ("POST", "move", "from=/tmp/none&to=/tmp/y"), 404, "/tmp/none");
    fails(&sandbox, ("POST", "move", "from=/tmp/a&to=/tmp/a/b/inside"), 400, "");
    // From one file system to another.
    assert_eq!(post("move", "from=/tmp/a/b/c/f&to=/root/f"), 204);
    assert_eq!(read(&sandbox, "/root/f"), "moved");
}

#[test]
fn errors_name_the_path_and_what_is_wrong_with_it() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    fails(&sandbox, ("GET", "files", "path=/no/such/file"), 404, "/no/such/file");
    fails(&sandbox, ("GET", "files", "path=/etc"), 400, "/etc");
    fails(&sandbox, ("PUT", "files", "path=/etc"), 400, "/etc");
    fails(&sandbox, ("PUT", "files", "path=/etc/passwd/x"), 400, "/etc/passwd/x");
    fails(&sandbox, ("GET", "files", ""), 400, "query: ");
    fails(&sandbox, ("GET", "files", "path=/etc/passwd&user=nobody-here"), 400, "nobody-here");
    fails(&sandbox, ("DELETE", "files", "path=/no/such"), 404, "/no");
    fails(&sandbox, ("DELETE", "files", "path=/"), 400, "");
    fails(&sandbox, ("PUT", "files", "path=/proc/version"), 400, "/proc/version");
    let name = "x".repeat(300);
    fails(&sandbox, ("PUT", "files", &format!("path=/tmp/{name}")), 400, "name");
    fails(&sandbox, ("GET", "files", "path=/tmp/a%00b"), 400, "");
    sandbox.sh("ln -s loop /tmp/loop; mkfifo /tmp/pipe");
    fails(&sandbox, ("GET", "files", "path=/tmp/loop"), 400, "/tmp/loop");
    fails(&sandbox, ("GET", "files", "path=/tmp/pipe"), 400, "/tmp/pipe");
}

#[test]
fn requests_act_as_the_user_they_name() {
    if forkyard_testkit::is_single_id() {
        skip!("more than one id");
    }
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    sandbox.sh("echo secret >/root/secret; chmod 600 /root/secret; chmod 700 /root");
    fails(&sandbox, ("GET", "files", "path=/root/secret&user=daemon"), 403, "/root/secret");
    fails(&sandbox, ("PUT", "files", "path=/etc/new&user=1234"), 403, "/etc/new");
    let (status, _) = ask(&sandbox, "PUT", "files", "path=/tmp/own&user=1234:1235", "x".into());
    assert_eq!(status, 204);
    let info = stat(&sandbox, "/tmp/own");
    assert_eq!((info.uid, info.gid), (1234, 1235));
    fails(&sandbox, ("DELETE", "files", "path=/tmp/own&user=4321"), 403, "/tmp/own");
    // The sandbox's own user is who acts when nobody is named.
    let sandbox = create(&server, &["--user", "1234"]);
    fails(&sandbox, ("PUT", "files", "path=/etc/new"), 403, "/etc/new");
    write(&sandbox, "/tmp/own", b"x");
    assert_eq!(stat(&sandbox, "/tmp/own").uid, 1234);
}

/// Makes a tree with what trees have: modes, links, empty and odd names.
fn odd_tree(top: &Path) {
    fs::create_dir_all(top.join("sub/empty")).unwrap();
    fs::write(top.join("plain"), "plain\n").unwrap();
    fs::write(top.join("run"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(top.join("run"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("plain", top.join("link")).unwrap();
    symlink("/no/such/target", top.join("sub/dangling")).unwrap();
    for name in ["with space", "new\nline", "quote'\"", "-dash", "ünïcödé", "colon:x", "*"] {
        fs::write(top.join("sub").join(name), name).unwrap();
    }
    fs::write(top.join("sub").join(OsStr::from_bytes(b"\xff\xfe raw")), "raw").unwrap();
    fs::write(top.join("sub").join("n".repeat(250)), "long").unwrap();
    fs::set_permissions(top.join("sub"), fs::Permissions::from_mode(0o711)).unwrap();
}

#[test]
fn trees_come_back_from_a_sandbox_as_they_went_in() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let top = server.dir().join("tree");
    odd_tree(&top);
    copied(&cp(&server, &top, inside(&sandbox, "/tmp/tree")));
    assert_eq!(
        sandbox.sh("/tmp/tree/run; readlink /tmp/tree/link; cat /tmp/tree/link"),
        "ran\nplain\nplain\n"
    );
    assert_eq!(sandbox.sh("ls /tmp/tree/sub | wc -l"), "12\n");
    let back = server.dir().join("back");
    copied(&cp(&server, inside(&sandbox, "/tmp/tree"), &back));
    assert_eq!(tree(&back), tree(&top));
    // Into a directory that is there, beside what is in it.
    fs::create_dir(server.dir().join("into")).unwrap();
    copied(&cp(&server, inside(&sandbox, "/tmp/tree"), server.dir().join("into")));
    assert_eq!(tree(&server.dir().join("into/tree")), tree(&top));
    copied(&cp(&server, inside(&sandbox, "/tmp/tree/."), server.dir().join("into")));
    assert!(server.dir().join("into/plain").exists());
}

#[test]
fn single_files_go_where_docker_puts_them() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let file = server.dir().join("file");
    fs::write(&file, "contents\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    copied(&cp(&server, &file, inside(&sandbox, "/tmp")));
    copied(&cp(&server, &file, inside(&sandbox, "/tmp/other")));
    assert_eq!(
        sandbox.sh("cat /tmp/file /tmp/other; stat -c %a /tmp/file"),
        "contents\ncontents\n640\n"
    );
    sandbox.sh("echo changed >/tmp/other");
    copied(&cp(&server, inside(&sandbox, "/tmp/other"), &file));
    assert_eq!(fs::read_to_string(&file).unwrap(), "changed\n");
    refused(&cp(&server, inside(&sandbox, "/tmp/none"), &file), 125, "/tmp/none");
    refused(&cp(&server, &file, inside(&sandbox, "/tmp/none/")), 125, "/tmp/none");
    refused(&cp(&server, &file, inside(&sandbox, "/no/such/dir/x")), 125, "/no/such/dir");
    refused(&cp(&server, server.dir().join("none"), inside(&sandbox, "/tmp")), 125, "none");
    refused(&cp(&server, server.dir(), inside(&sandbox, "/tmp/other")), 125, "/tmp/other");
    refused(&cp(&server, &file, &file), 125, "");
    refused(&cp(&server, inside(&sandbox, "/a"), inside(&sandbox, "/b")), 125, "both sides");
    assert_eq!(fs::read_to_string(&file).unwrap(), "changed\n");
}

#[test]
fn archives_go_through_stdin_and_stdout() {
    let server = TestServer::start();
    let (from, to) = (create(&server, &[]), create(&server, &[]));
    from.sh("mkdir -p /srv/t/d; echo 1 >/srv/t/d/f; ln -s d/f /srv/t/l");
    let archive = server.cli(&["cp", &format!("{}:/srv/t", from.id), "-"]);
    assert_eq!(code(&archive), 0, "{}", stderr(&archive));
    let args = ["cp", "-", &format!("{}:/srv", to.id)];
    let out = server.cli_with_input(&args, &archive.stdout);
    assert_eq!(code(&out), 0, "{}", stderr(&out));
    assert_eq!(to.sh("cat /srv/t/l; readlink /srv/t/l"), "1\nd/f\n");
    let out = server.cli_with_input(&args, &archive.stdout[..700]);
    assert_eq!(out.status.code(), Some(125), "{}", stderr(&out));
    let out = server.cli_with_input(&args, b"this is no archive");
    assert_eq!(out.status.code(), Some(125), "{}", stderr(&out));
    assert_eq!(stdout(&to.exec(&["cat", "/srv/t/l"])), "1\n");
}

#[test]
fn a_copy_out_never_leaves_where_it_was_sent() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let outside = server.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), "untouched").unwrap();
    sandbox.sh(&format!(
        "mkdir -p /tmp/t/real; ln -s {0} /tmp/t/link; ln -s {0}/f /tmp/t/f; echo bad >/tmp/t/real/f",
        outside.display()
    ));
    let into = server.dir().join("into");
    fs::create_dir(&into).unwrap();
    copied(&cp(&server, inside(&sandbox, "/tmp/t/."), &into));
    sandbox.sh("cd /tmp/t; rm link f; mkdir link; echo bad >link/f; echo bad >f");
    // A second copy finds the links of the first in its way.
    let _ = cp(&server, inside(&sandbox, "/tmp/t/."), &into);
    assert_eq!(fs::read_to_string(outside.join("f")).unwrap(), "untouched");
}

#[test]
fn files_of_a_sandbox_that_has_ended_are_refused_with_its_state() {
    let server = TestServer::start();
    let sandbox = create(&server, &["--timeout", "100ms"]);
    sandbox.wait_ended();
    fails(&sandbox, ("GET", "files", "path=/etc/passwd"), 409, "is ended: deadline");
}
