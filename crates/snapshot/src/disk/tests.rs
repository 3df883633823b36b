//! What was written is read again, or refused.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::capture::Taken;
use crate::picture::{
    Alive, Area, AreaKind, Body, Credentials, Description, DescriptionKind, Descriptor, FileRef,
    Loose, LooseKind, Memory, Picture, Process, ProcessAttributes, Scheduling, Thread,
    ThreadAttributes,
};
use crate::stage::Stage;
use crate::times::Times;
use forkyard_sys::memory::HUGE;

const PAGE: u64 = 4096;

/// Two tests that look for free addresses at once might find the same.
static ADDRESSES: Mutex<()> = Mutex::new(());

/// A process with a page that holds something, one that does not, and one of shared memory.
fn taken() -> Taken {
    let mut used = Vec::new();
    let own = crate::proc::mappings(rustix::process::getpid()).unwrap();
    used.extend(own.iter().map(|area| (area.start, area.end)));
    let mut stage = Stage::find(used).unwrap();
    stage.set_aside(2 * HUGE).unwrap();
    let start = 0x4000_1000;
    let mut mirror = stage.mirror(start, 3 * PAGE, false).unwrap();
    let at = mirror.start();
    mirror.write(at + PAGE, b"in the second page").unwrap();
    mirror.protect(0).unwrap();
    stage.keep(mirror, PAGE);
    let mut contents = stage.mirror(0, PAGE, false).unwrap();
    let part = contents.start();
    contents.write(part, b"shared").unwrap();
    stage.keep(contents, PAGE);
    let area = Area {
        start,
        end: start + 3 * PAGE,
        protection: 0,
        flags: vec![*b"mr"],
        guards: Vec::new(),
        name: None,
        kind: AreaKind::Anonymous { staged: Some(at) },
    };
    let memory = Memory {
        areas: vec![area],
        bounds: [0; 11],
        auxv: vec![1, 2, 3],
        program: FileRef::Path(b"/bin/true".to_vec()),
        lock_future: 0,
        no_exec_gain: 0,
        no_huge_pages: false,
        staged: stage.mirrors(),
    };
    let loose = Loose {
        kind: LooseKind::Anonymous { at: stage.shared() },
        size: PAGE,
        owner: (0, 0),
        mode: 0o600,
        times: [(0, 0); 2],
        parts: vec![(0, PAGE, part)],
    };
    let description = Description {
        flags: 0,
        position: 7,
        locks: Vec::new(),
        owner: None,
        kind: DescriptionKind::Path(b"/etc/\xff".to_vec()),
    };
    let process = Process {
        pid: 2,
        parent: 1,
        group: 2,
        session: 2,
        terminal: None,
        body: Body::Alive(Box::new(alive(memory))),
    };
    let picture = Picture {
        processes: vec![process],
        descriptions: vec![description],
        loose: vec![loose],
        inputs: [(u64::MAX, serde_bytes::ByteBuf::from(vec![0, 255]))].into(),
        ..Picture::default()
    };
    Taken { picture, stage, times: Times::default() }
}

fn alive(memory: Memory) -> Alive {
    let thread = Thread {
        tid: 2,
        registers: vec![u64::MAX; crate::registers::COUNT],
        extended: vec![9; 600],
        mask: 0,
        pending: Vec::new(),
        alternate_stack: [0; 3],
        clear_tid: 0,
        robust_list: (0, 0),
        rseq: (0, 0, 0),
        name: b"name".to_vec(),
        credentials: Credentials::default(),
        death_signal: 0,
        timer_slack: 50_000,
        scheduling: Scheduling::default(),
        affinity: vec![3],
        attributes: ThreadAttributes::default(),
    };
    Alive {
        threads: vec![thread],
        memory,
        descriptors: vec![Descriptor {
            number: 3,
            close_on_exec: true,
            description: 0,
            locks: Vec::new(),
        }],
        directory: FileRef::Path(b"/".to_vec()),
        umask: 0o22,
        actions: vec![None; 64],
        pending: Vec::new(),
        limits: vec![(1, 2); 16],
        timers: [[0; 4]; 3],
        posix_timers: Vec::new(),
        stopped: None,
        stop_untold: false,
        dumpable: true,
        subreaper: false,
        oom_score: 0,
        personality: 0,
        attributes: ProcessAttributes::default(),
    }
}

/// A directory with a snapshot in it.
fn written(taken: Option<&Taken>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("files/root/etc")).unwrap();
    fs::write(dir.path().join("files/root/etc/file"), "contents").unwrap();
    let root: OwnedFd = fs::File::open("/").unwrap().into();
    let content = Content {
        taken,
        root: &root,
        records: &"records".to_owned(),
        taken_at: 1,
        image: "host",
        ids: "root",
    };
    let written = write(dir.path(), &content, &|| true).unwrap();
    assert!(written.length > 8);
    dir
}

/// What a snapshot holds that does not depend on addresses.
fn essence(dir: &Path) -> Result<(String, Vec<u8>, String)> {
    let read = read::<String>(dir, "root", Vec::new())?;
    let (taken, _, records) = read.memory.unwrap();
    let Taken { mut picture, stage, .. } = taken;
    let Body::Alive(alive) = &mut picture.processes[0].body else { panic!("a zombie") };
    let AreaKind::Anonymous { staged: Some(at) } = alive.memory.areas[0].kind else {
        panic!("no mirror")
    };
    alive.memory.areas[0].kind = AreaKind::Anonymous { staged: Some(0) };
    alive.memory.staged = (0, 0);
    let part = std::mem::take(&mut picture.loose[0].parts)[0];
    picture.loose[0].kind = LooseKind::Removed { path: Vec::new() };
    let file = tempfile::tempfile().unwrap();
    stage.open().unwrap();
    stage.write_range(0, (at, 3 * PAGE), &file, 0).unwrap();
    stage.write_range(1, (part.2, PAGE), &file, 3 * PAGE).unwrap();
    stage.release().unwrap();
    let mut bytes = vec![0; 4 * PAGE as usize];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    Ok((format!("{picture:?}"), bytes, records))
}

#[test]
fn what_was_written_is_read_elsewhere_in_memory() {
    let _alone = ADDRESSES.lock();
    let taken = taken();
    let dir = written(Some(&taken));
    let (_, bytes, records) = essence(dir.path()).unwrap();
    assert_eq!(records, "records");
    assert!(bytes[..PAGE as usize].iter().all(|&byte| byte == 0));
    assert!(bytes[PAGE as usize..].starts_with(b"in the second page"));
    assert!(bytes[3 * PAGE as usize..].starts_with(b"shared"));
    let pages = fs::metadata(dir.path().join("pages")).unwrap().len();
    assert_eq!(pages, 2 * PAGE, "what holds nothing is not written");
    assert!(matches!(read::<String>(dir.path(), "single", Vec::new()), Err(Error::Unfit(_))));
    taken.stage.release().unwrap();
}

#[test]
fn files_alone_are_read_and_checked() {
    let dir = written(None);
    assert!(read::<String>(dir.path(), "root", Vec::new()).unwrap().memory.is_none());
    fs::write(dir.path().join("files/more"), "").unwrap();
    assert!(matches!(read::<String>(dir.path(), "root", Vec::new()), Err(Error::Damaged(_))));
}

#[test]
fn writing_is_given_up_when_nobody_waits() {
    let _alone = ADDRESSES.lock();
    let taken = taken();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("files")).unwrap();
    let root: OwnedFd = fs::File::open("/").unwrap().into();
    let content =
        Content { taken: Some(&taken), root: &root, records: &(), taken_at: 1, image: "", ids: "" };
    assert!(matches!(write(dir.path(), &content, &|| false), Err(Error::Abandoned)));
    assert!(!dir.path().join("header").exists());
    taken.stage.release().unwrap();
}

/// What happens to a file.
#[derive(Clone, Copy, Debug)]
enum Harm {
    Change(u8),
    Cut,
    Insert(u8),
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        (1..=255_u8).prop_map(Harm::Change),
        Just(Harm::Cut),
        any::<u8>().prop_map(Harm::Insert)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_damaged_is_refused_or_the_same(
        part in prop::sample::select(vec!["header", "picture", "pages", "files/root/etc/file"]),
        at: prop::sample::Index,
        harm in harm(),
    ) {
        let _alone = ADDRESSES.lock();
        let taken = taken();
        let dir = written(Some(&taken));
        taken.stage.release().unwrap();
        let before = essence(dir.path()).unwrap();
        let path = dir.path().join(part);
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        match harm {
            Harm::Change(by) => bytes[at] ^= by,
            Harm::Cut => bytes.truncate(at),
            Harm::Insert(byte) => bytes.insert(at, byte),
        }
        fs::write(&path, &bytes).unwrap();
        match essence(dir.path()) {
            Ok(after) => prop_assert_eq!(after, before),
            Err(Error::Damaged(_) | Error::Unfit(_)) => {}
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn no_bytes_make_a_reader_of_pictures_panic(
        at: prop::sample::Index,
        change in prop::collection::vec(any::<u8>(), 0..9),
        cut: bool,
    ) {
        let _alone = ADDRESSES.lock();
        let taken = taken();
        let plan = taken.stage.plan(&taken.picture).unwrap();
        let saved =
            Saved { picture: &taken.picture, plan, marks: Vec::new(), records: "records" };
        let mut bytes = Vec::new();
        ciborium::into_writer(&saved, &mut bytes).unwrap();
        taken.stage.release().unwrap();
        let at = at.index(bytes.len());
        for (byte, new) in bytes[at..].iter_mut().zip(&change) {
            *byte = *new;
        }
        if cut {
            bytes.truncate(at);
        }
        let _ = read::parse::<String>(&bytes);
    }
}

#[test]
fn lengths_that_nobody_wrote_take_no_memory() {
    // An array of 2^60 processes, and a string of 2^60 bytes.
    for bytes in [
        b"\xa1\x67picture\xa1\x69processes\x9b\x10\0\0\0\0\0\0\0".as_slice(),
        b"\xa1\x67records\x7b\x10\0\0\0\0\0\0\0",
        b"\xa1\x65marks\x5b\x10\0\0\0\0\0\0\0",
    ] {
        assert!(matches!(read::parse::<String>(bytes), Err(Error::Damaged(_))));
    }
}

#[test]
fn pages_that_are_mapped_twice_are_refused() {
    let _alone = ADDRESSES.lock();
    let taken = taken();
    let mut plan = taken.stage.plan(&taken.picture).unwrap();
    let again = plan.mirrors[0].clone();
    plan.mirrors.push(again);
    let saved = Saved { picture: taken.picture, plan, marks: Vec::new(), records: () };
    assert!(check::check(&saved).is_err());
    taken.stage.release().unwrap();
}
