//! Paths and files that a hostile guest prepares.

mod files_support;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use files_support::*;
use forkyard_guest::files::Root;
use forkyard_guest::files::proto::{EntryKind, FileErrorKind, FileOp, FileReply, WriteTarget};
use forkyard_testkit::{find_program, skip};
use rustix::fs::{FileType, Mode, mknodat};
use rustix::io::Errno;

#[test]
fn absolute_links_and_dot_dot_stay_within_the_root() {
    let place = Place::new();
    place.dir("etc");
    place.file("etc/passwd", "inside");
    place.link("/etc/passwd", "absolute");
    place.link("../../../../../../etc/passwd", "climbing");
    for path in ["/absolute", "/climbing", "/../../etc/passwd", "etc/../../etc/passwd"] {
        assert_eq!(contents(place.ask(read(path))), b"inside", "{path}");
    }
}

#[test]
fn a_link_to_a_file_outside_finds_nothing_and_writes_nothing() {
    let outside = tempfile::NamedTempFile::new().expect("a file outside");
    let place = Place::new();
    place.link(outside.path(), "link");
    assert_eq!(place.error(read("/link")), FileErrorKind::NotFound);
    // Its directory does not exist inside, so the file cannot be made there either.
    assert_eq!(place.error(write("/link", "x")), FileErrorKind::NotFound);
    assert_eq!(std::fs::read(outside.path()).expect("the file"), b"");
}

#[test]
fn magic_links_of_proc_are_not_followed() {
    let place = Place::new();
    let real = Root::open("/").expect("the root");
    for (number, target) in
        ["/proc/self/fd/0", "/proc/self/exe", "/proc/self/root/etc/passwd", "/proc/self/cwd"]
            .iter()
            .enumerate()
    {
        let name = format!("magic-{number}");
        place.link(target, &name);
        let path = place.at(&name).to_string_lossy().into_owned();
        for op in [read(&path), write(&path, "x"), stat(&path), list(&path, 1, 10)] {
            let error = ask_in(&real, &own_user(), op.clone(), None).expect_err("refused");
            let text = error.to_string();
            assert!(text.contains("run a command for that"), "{op:?}: {text}");
        }
    }
}

#[test]
fn contents_on_procfs_are_refused_whatever_way_leads_there() {
    let place = Place::new();
    let real = Root::open("/").expect("the root");
    place.link("/proc/self/environ", "environ");
    place.link("/proc", "proc");
    let way = |name: &str| place.at(name).to_string_lossy().into_owned();
    let ops = [
        read("/proc/self/environ"),
        read("/proc/1/mem"),
        read(&way("environ")),
        write(&way("environ"), "x"),
        write("/proc/self/oom_score_adj", "0"),
        write("/proc/self/nothing-of-that-name", "0"),
        list(&way("proc"), 1, 10),
        make_dir("/proc/new", false, 0o755),
        remove("/proc/version", false),
        rename("/proc/version", &way("version"), false),
    ];
    for op in ops {
        let error = ask_in(&real, &own_user(), op.clone(), None).expect_err("refused");
        assert!(error.to_string().contains("procfs; run a command"), "{op:?}: {error}");
    }
}

#[test]
fn a_link_on_procfs_is_told_without_its_target() {
    let real = Root::open("/").expect("the root");
    let op = FileOp::Stat { path: b"/proc/self/exe".to_vec(), follow: false };
    let entry = entry(ask_in(&real, &own_user(), op, None));
    assert_eq!((entry.kind, entry.target), (EntryKind::Symlink, None));
}

#[test]
fn nothing_is_written_to_sysfs_but_it_can_be_read() {
    let real = Root::open("/").expect("the root");
    let error = ask_in(&real, &own_user(), make_dir("/sys/forkyard", false, 0o755), None);
    assert!(error.expect_err("refused").to_string().contains("sysfs; run a command"));
    let page = contents(ask_in(
        &real,
        &own_user(),
        read("/sys/kernel/mm/transparent_hugepage/enabled"),
        None,
    ));
    assert!(String::from_utf8_lossy(&page).contains("never"));
}

#[test]
fn a_fifo_is_refused_without_waiting() {
    let place = Place::new();
    let dir = std::fs::File::open(place.at("/")).expect("the root");
    mknodat(&dir, "fifo", FileType::Fifo, Mode::from_raw_mode(0o666), 0).expect("a fifo");
    place.link("fifo", "link");
    for op in [read("/fifo"), read("/link"), write("/fifo", "x")] {
        assert!(place.refusal(op).contains("a fifo"));
    }
    assert_eq!(entry(place.ask(stat("/fifo"))).kind, EntryKind::Other);
}

#[test]
fn a_socket_is_refused() {
    let place = Place::new();
    let _listener = UnixListener::bind(place.at("socket")).expect("a socket");
    assert!(place.refusal(read("/socket")).contains("a socket"));
    assert!(place.refusal(write("/socket", "x")).contains("a socket"));
}

#[test]
fn a_device_is_refused() {
    let real = Root::open("/").expect("the root");
    for op in [read("/dev/zero"), write("/dev/null", "x")] {
        let error = ask_in(&real, &own_user(), op, None).expect_err("refused");
        assert!(error.to_string().contains("a device; run a command"), "{error}");
    }
}

#[test]
fn a_loop_of_links_ends_in_an_error() {
    let place = Place::new();
    place.link("b", "a");
    place.link("a", "b");
    assert!(place.refusal(read("/a")).contains("loop"));
    assert!(place.refusal(write("/a", "x")).contains("loop"));
}

#[test]
fn malformed_paths_are_refused_before_anything_is_done() {
    let place = Place::new();
    let long_name = format!("/new/{}", "n".repeat(256));
    let long_path = format!("/new{}", "/nn".repeat(1400));
    for (path, why) in
        [("", "empty"), ("/new/a\0b", "NUL"), (&*long_name, "255"), (&*long_path, "4095")]
    {
        let target =
            WriteTarget { path: bytes(path), create_parents: true, ..WriteTarget::default() };
        for op in [read(path), make_dir(path, true, 0o755), write_to(target, "x")] {
            let why_not = place.refusal(op.clone());
            assert!(why_not.contains(why), "{op:?}: {why_not}");
        }
    }
    assert!(!place.at("new").exists());
}

#[test]
fn the_root_and_names_of_dot_dot_cannot_be_changed() {
    let place = Place::new();
    place.dir("a");
    for path in ["/", "/a/..", "..", "/."] {
        assert!(matches!(place.error(remove(path, true)), FileErrorKind::Refused(_)), "{path}");
        assert!(matches!(place.error(rename(path, "/b", false)), FileErrorKind::Refused(_)));
        assert!(matches!(place.error(rename("/a", path, false)), FileErrorKind::Refused(_)));
    }
    assert!(place.at("a").is_dir());
}

#[test]
fn names_in_any_bytes_come_and_go_unchanged() {
    let place = Place::new();
    let name = b"odd \xff\xfe\n\x1b[31m".to_vec();
    let path = [b"/", &name[..]].concat();
    let target = WriteTarget { path: path.clone(), ..WriteTarget::default() };
    place.ask(write_to(target, "odd")).expect("written");
    assert!(place.at("").join(OsStr::from_bytes(&name)).is_file());
    let (entries, _) = place.list("/", 1, 10);
    assert_eq!(entries.iter().map(|entry| &entry.path).collect::<Vec<_>>(), [&name]);
    let read = FileOp::Read { path: path.clone(), offset: 0, length: None };
    assert_eq!(contents(place.ask(read)), b"odd");
    let error = place.ask(FileOp::MakeDir { path, parents: false, mode: 0o755 });
    let text = error.expect_err("exists").to_string();
    assert!(!text.contains(['\n', '\x1b']), "{text:?}");
}

#[test]
fn relative_paths_start_at_the_working_directory_and_tilde_at_home() {
    let place = Place::new();
    place.dir("root");
    place.dir("etc");
    place.file(
        "etc/passwd",
        format!(
            "me:x:{}:{}::/root:/bin/sh\n",
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw()
        ),
    );
    place.file("root/notes", "home");
    place.file("notes", "cwd");
    assert_eq!(contents(place.ask(read("notes"))), b"cwd");
    assert_eq!(contents(place.ask(read("~/notes"))), b"home");
}

#[test]
fn stat_tells_a_link_or_what_it_leads_to() {
    let place = Place::new();
    place.file("file", "12345");
    place.link("file", "link");
    let followed = entry(place.ask(stat("link")));
    assert_eq!((followed.kind, followed.size, followed.path), (EntryKind::File, 5, bytes("/link")));
    let op = FileOp::Stat { path: bytes("/link"), follow: false };
    let link = entry(place.ask(op));
    assert_eq!(link.kind, EntryKind::Symlink);
    assert_eq!(link.target.map(serde_bytes::ByteBuf::into_vec), Some(bytes("file")));
}

/// Holds a write lease on the file that it is given until its input ends.
const LEASE: &str = "
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('held', flush=True)
sys.stdin.read()
";

#[test]
fn a_lease_that_the_guest_holds_delays_nothing() {
    let place = Place::new();
    place.file("leased", "text");
    let Some(python) = find_program("python3") else { skip!("python3") };
    let mut holder = Command::new(python)
        .args(["-c", LEASE])
        .arg(place.at("leased"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let mut line = String::new();
    let output = holder.stdout.take().expect("its output");
    BufReader::new(output).read_line(&mut line).expect("a line");
    assert_eq!(line, "held\n");
    let again = Errno::AGAIN.raw_os_error();
    assert_eq!(place.error(read("/leased")), FileErrorKind::Other { errno: again });
    drop(holder.stdin.take());
    holder.wait().expect("its end");
    assert_eq!(contents(place.ask(read("/leased"))), b"text");
}

#[test]
fn replies_survive_their_encoding() {
    let place = Place::new();
    place.file("a", "1");
    let (reply, _) = place.ask(list("/", 1, 5)).expect("a listing");
    let encoded = postcard::to_stdvec(&reply).expect("encoded");
    assert_eq!(postcard::from_bytes::<FileReply>(&encoded), Ok(reply));
}
