//! Tricks with files against requests that come from outside.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Duration;

use crate::arena::{CANARY, Guest, text};
use crate::case::cases;

cases! {
    links_to_procfs: "links to /proc/self/fd/N, /proc/1/root, /proc/1/environ under a request to \
        read"
        => "files are opened without procfs's magic links; contents on procfs are refused", procfs;
    links_to_the_host: "an absolute link to a file of the host's, read and written through"
        => "mount namespace: links are followed by init, inside", absolute;
    swapped_while_read: "a file that is exchanged for a link, a fifo and back while it is read"
        => "opened once, without waiting, and checked by its descriptor", swapped;
    upload_through_a_link_to_a_device: "links to devices, sockets and /proc/sys where an upload goes"
        => "only regular files are written, none on procfs or sysfs", upload;
    a_fifo_under_a_request: "a fifo that nobody writes to, read, written and archived"
        => "opened without waiting; not a regular file", fifo;
    a_lease_on_a_file: "a write lease that is never given back, on a file that is read and written"
        => "opened without waiting", lease;
    trees_that_change: "files and directories that are made, removed and exchanged for links to \
        the host's while their tree is listed, archived and copied"
        => "walks go by descriptors, never follow links, and pass over what is gone", changing;
    trees_too_deep_and_names_too_long: "1,500 directories deep, names of 255 bytes, listed, \
        archived, copied and removed"
        => "walks go by descriptors and have a limit of depth: an answer or an error, no crash", deep;
    names_of_any_bytes: "names with newlines, terminal escapes and bytes that are not UTF-8, listed \
        and archived"
        => "names are bytes; JSON shows them replaced", names;
    archives_that_point_outside: "`..`, absolute paths and writing through a link in an archive \
        that is unpacked"
        => "unpacking stays below its directory, by descriptors", archive_in;
    trees_that_point_outside: "links to the host's files in a tree that is copied to the host"
        => "links are made, never followed", tree_out;
    setuid_files_copied_out: "a setuid-root program in a tree that is copied to the host"
        => "set-id bits are taken off", setuid_out;
}

fn procfs(guest: &Guest) {
    guest.sh(
        "cd /root; n=0; for t in /proc/self/fd/0 /proc/self/fd/3 /proc/self/fd/5 /proc/1/environ \
         /proc/1/root/etc/passwd /proc/1/mem /proc/self/mem /proc/1/maps /proc/1/cwd \
         /proc/1/exe /proc/kcore /proc/kmsg; do ln -s $t l$n; n=$((n+1)); done",
    );
    for link in 0..12 {
        let (status, body) = guest.read(&format!("/root/l{link}"));
        assert!((400..500).contains(&status), "link {link}: {status} {}", text(&body));
        let (status, body) = guest.write(&format!("/root/l{link}"), "x");
        assert!((400..500).contains(&status), "link {link}: {status} {}", text(&body));
    }
}

fn absolute(guest: &Guest) {
    let canary = guest.arena.canary().to_string_lossy().into_owned();
    guest.sh(&format!("ln -s {canary} /root/canary; ln -s /etc/shadow /root/shadow"));
    let (status, body) = guest.read("/root/canary");
    assert_eq!(status, 404, "{}", text(&body));
    // A write makes the file inside, if its directory is there; it is not.
    let (status, _) = guest.write("/root/canary", "overwritten");
    assert_eq!(status, 404);
    let (status, body) = guest.read("/root/shadow");
    let own = guest.sh("cat /etc/shadow 2>/dev/null");
    assert!(status == 404 || text(&body) == own, "{status}");
}

fn swapped(guest: &Guest) {
    guest.sh("echo good >/root/a; ln -s /proc/1/environ /root/b; mkfifo /root/c; ln -s / /root/d");
    let swap = "cd /root; echo up; while :; do for f in a b c d; do ln -sfn /root/$f x; \
                cp -dT --remove-destination $f x 2>/dev/null; done; done";
    guest.spawn(&["/bin/bash", "-c", swap]);
    for _ in 0..300 {
        let (status, body) = guest.read("/root/x");
        let body = text(&body);
        let right = match status {
            200 => body == "good\n" || body.is_empty(),
            400..500 => true,
            // Taken away between two looks.
            _ => body.contains("No such file") || body.contains("temporarily"),
        };
        assert!(right, "{status}: {body}");
    }
}

fn upload(guest: &Guest) {
    guest.sh("cd /root; ln -s /dev/tty t; ln -s /dev/full f; ln -s /dev/pts/ptmx p; \
         ln -s /proc/sys/kernel/hostname h; ln -s /proc/self/comm c; ln -s /sys/power/state s");
    for link in ["t", "f", "p", "h", "c", "s"] {
        let (status, body) = guest.write(&format!("/root/{link}"), "owned");
        assert!((400..500).contains(&status), "{link}: {status} {}", text(&body));
    }
}

fn fifo(guest: &Guest) {
    guest.sh("mkfifo /root/fifo; mkdir /root/tree; mkfifo /root/tree/fifo; echo x >/root/tree/x");
    for (status, body) in [guest.read("/root/fifo"), guest.write("/root/fifo", "x")] {
        assert!((400..500).contains(&status), "{status} {}", text(&body));
    }
    let (status, body) = guest.arena.http().get(&guest.url("archive?path=/root/tree"));
    assert_eq!(status, 200);
    let mut archive = tar::Archive::new(&body[..]);
    let names = archive.entries().expect("an archive").flatten().count();
    assert!(names >= 2, "{names} entries");
}

/// Whatever a request about a tree says, it is said in time.
fn ask_all(guest: &Guest, tree: &str, round: u32) {
    let http = guest.arena.http();
    for (method, rest) in [
        ("GET", format!("list?path={tree}&depth=9999")),
        ("GET", format!("archive?path={tree}")),
        ("POST", format!("copy?from={tree}&to=/tmp/copy{round}&recursive=true")),
    ] {
        let canary = CANARY.as_bytes();
        match http.request(method, &guest.url(&rest), "") {
            Ok((status, body)) => {
                assert!(status < 500 || body.starts_with(b"{"), "{method} {rest}: {status}");
                assert!(!body.windows(canary.len()).any(|part| part == canary), "{rest}");
            }
            // An archive that breaks off ends its transfer.
            Err(forkyard_testkit::http::HttpError::Exchange { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn changing(guest: &Guest) {
    let host = guest.arena.server.dir().to_string_lossy().into_owned();
    let change = format!(
        "mkdir -p /root/t/a/b; cd /root/t; echo up; while :; do \
         for i in 1 2 3 4 5 6 7 8 9; do mkdir -p a/$i; echo x >a/$i/f; done; \
         rm -rf a/b; ln -s {host} a/b; mv a c; ln -s {host} a; rm -rf a c; mkdir -p a/b; done"
    );
    guest.spawn(&["/bin/bash", "-c", &change]);
    for round in 0..30 {
        ask_all(guest, "/root/t", round);
    }
}

fn deep(guest: &Guest) {
    let out = guest.sh("mkdir /tmp/t; cd /tmp/t && /hostile/attack deep 1500; cd /tmp/t; \
         n=$(head -c 255 /dev/zero | tr '\\0' n); mkdir $n; : >$n/$n; echo made");
    assert!(out.ends_with("made\n"), "{out}");
    ask_all(guest, "/tmp/t", 0);
    let target = guest.url("files?path=/tmp/t&recursive=true");
    let (status, body) = guest.arena.http().delete(&target);
    assert!((200..500).contains(&status), "{status}: {}", text(&body));
}

fn lease(guest: &Guest) {
    assert_eq!(guest.spawn_attack(&["lease", "/tmp/leased"]), "lease OK\n");
    let started = std::time::Instant::now();
    let (read, _) = guest.read("/tmp/leased");
    let (written, _) = guest.write("/tmp/leased", "x");
    assert!(read != 200 || written != 204, "the lease had no effect");
    // The kernel would have init wait for 45 seconds, each time.
    assert!(started.elapsed() < Duration::from_secs(40), "init waited {:?}", started.elapsed());
}

fn names(guest: &Guest) {
    guest.sh("mkdir /root/n; cd /root/n; : >\"$(printf 'a\\nb')\"; : >\"$(printf '\\033[2Jc')\"; \
         : >\"$(printf '\\377\\376')\"; : >'{\"path\":\"etc\"}'; : >-rf; : >' '");
    let (status, body) = guest.arena.http().get(&guest.url("list?path=/root/n"));
    assert_eq!(status, 200);
    let list: Vec<serde_json::Value> = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(list.len(), 6, "{list:?}");
    assert!(!body.contains(&0x1b) && !body[1..].contains(&b'\n'), "raw control characters");
    let (status, body) = guest.arena.http().get(&guest.url("archive?path=/root/n"));
    assert_eq!(status, 200);
    let mut archive = tar::Archive::new(&body[..]);
    let names: Vec<_> = archive
        .entries()
        .expect("an archive")
        .map(|entry| entry.expect("an entry").path_bytes().into_owned())
        .collect();
    assert!(names.iter().any(|name| name.ends_with(b"\xff\xfe")), "{names:?}");
}

fn archive_in(guest: &Guest) {
    let entry = |builder: &mut tar::Builder<Vec<u8>>, name: &str, link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        // Past the checks of the crate, which is on our side.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(0o644);
        header.set_size(if link.is_some() { 0 } else { 5 });
        if let Some(link) = link {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_link_name(link).expect("a link");
        }
        header.set_cksum();
        let contents: &[u8] = if link.is_some() { b"" } else { b"owned" };
        builder.append(&header, contents).expect("an entry");
    };
    let canary = guest.arena.canary().to_string_lossy().into_owned();
    guest.sh("mkdir -p /root/in /root/safe; echo own >/root/safe/file");
    for (name, link) in [
        ("../safe/file", None),
        ("/root/safe/file", None),
        ("a/../../safe/file", None),
        ("out", Some("../safe")),
        (canary.as_str(), None),
    ] {
        let mut builder = tar::Builder::new(Vec::new());
        entry(&mut builder, name, link);
        if link.is_some() {
            entry(&mut builder, "out/file", None);
        }
        let archive = builder.into_inner().expect("an archive");
        // Refused, or unpacked below the directory: either is right, outside is not.
        let _ = guest.arena.http().put(&guest.url("archive?path=/root/in"), archive);
        assert_eq!(guest.sh("cat /root/safe/file"), "own\n", "{name}");
    }
}

fn tree_out(guest: &Guest) {
    let dir = tempfile::tempdir_in(guest.arena.server.dir()).expect("a directory");
    let secret = dir.path().join("secret");
    fs::create_dir(&secret).expect("a directory");
    fs::write(secret.join("file"), CANARY).expect("a file");
    let target = secret.to_string_lossy().into_owned();
    guest.sh(&format!(
        "mkdir -p /root/tree/real; ln -s {target} /root/tree/link; ln -s {target}/file \
         /root/tree/file; echo new >/root/tree/real/file"
    ));
    // What is there already on the host, and what the guest would have followed.
    let out = dir.path().join("out");
    fs::create_dir_all(out.join("tree")).expect("a directory");
    symlink(&secret, out.join("tree/real")).expect("a link");
    let source = format!("{}:/root/tree", guest.id);
    let copied = guest.arena.server.cli(&["cp", &source, &out.to_string_lossy()]);
    assert_eq!(fs::read_to_string(secret.join("file")).expect("the file"), CANARY, "{copied:?}");
    let kept = fs::symlink_metadata(out.join("tree/link"));
    assert!(kept.is_err() || kept.is_ok_and(|found| found.is_symlink()));
}

fn setuid_out(guest: &Guest) {
    let dir = tempfile::tempdir_in(guest.arena.server.dir()).expect("a directory");
    guest.sh("mkdir /root/t; cp /usr/bin/id /root/t/id; chmod 6755 /root/t/id; chmod 2777 /root/t");
    let source = format!("{}:/root/t", guest.id);
    guest.arena.server.ok(&["cp", &source, &dir.path().to_string_lossy()]);
    for path in ["t", "t/id"] {
        let mode = fs::metadata(dir.path().join(path)).expect("a copy").permissions().mode();
        assert_eq!(mode & 0o6000, 0, "{path} has mode {mode:o}");
    }
}
