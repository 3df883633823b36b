//! Layers appear whole or not at all, and once.

use std::io::Write;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::unpack::{InProcess, Unpacked};

fn layer(text: &str) -> (File, Digest) {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "file", text.as_bytes()).unwrap();
    let bytes = builder.into_inner().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    (file, Digest::sha256_of(&bytes))
}

fn open(dir: &Path) -> LayerStore {
    LayerStore::open(dir, Ownership::Squash, Limits::default(), &InProcess).unwrap()
}

fn leftovers(dir: &Path) -> usize {
    fs::read_dir(dir.join("tmp")).unwrap().count()
}

/// Counts how often it is asked, and says so before it works.
struct Counting {
    calls: AtomicUsize,
    on_call: Mutex<Box<dyn FnMut() + Send>>,
}

impl Counting {
    fn new(on_call: impl FnMut() + Send + 'static) -> Self {
        Self { calls: AtomicUsize::new(0), on_call: Mutex::new(Box::new(on_call)) }
    }
}

impl Unpacker for Counting {
    fn unpack(
        &self,
        blob: Blob<'_>,
        destination: BorrowedFd<'_>,
        ownership: Ownership,
        limits: Limits,
    ) -> Result<Unpacked, UnpackError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        (self.on_call.lock().unwrap())();
        InProcess.unpack(blob, destination, ownership, limits)
    }
}

#[test]
fn a_layer_is_added_listed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (file, id) = layer("hello");
    let hold = store.add(Blob::whole(&file).unwrap(), Some(&id), "l", &InProcess).unwrap();
    assert_eq!(fs::read_to_string(store.tree(&id).join("file")).unwrap(), "hello");
    assert_eq!(store.list().unwrap(), [hold.facts().clone()]);
    assert!(matches!(store.remove(&id, &InProcess), Err(StoreError::Busy(_))));
    drop(hold);
    store.remove(&id, &InProcess).unwrap();
    assert!(!store.has(&id));
    assert_eq!(leftovers(dir.path()), 0);
    store.remove(&id, &InProcess).unwrap();
}

#[test]
fn contents_of_another_digest_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (file, _) = layer("hello");
    let other = Digest::sha256_of(b"other");
    let error = store.add(Blob::whole(&file).unwrap(), Some(&other), "l", &InProcess).unwrap_err();
    assert!(matches!(error, StoreError::WrongContents { .. }), "{error}");
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(leftovers(dir.path()), 0);
}

#[test]
fn an_archive_without_end_mark_needs_a_digest() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (file, _) = layer("hello");
    let cut = Blob { length: 1024, ..Blob::whole(&file).unwrap() };
    let error = store.add(cut, None, "l", &InProcess).unwrap_err();
    assert!(matches!(error, StoreError::Truncated { .. }), "{error}");
    assert_eq!(leftovers(dir.path()), 0);
}

#[test]
fn many_who_add_one_layer_unpack_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (file, id) = layer("shared");
    let unpacker = Counting::new(|| ());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let blob = Blob::whole(&file).unwrap();
                store.add(blob, Some(&id), "l", &unpacker).unwrap();
            });
        }
    });
    assert_eq!(unpacker.calls.load(Ordering::SeqCst), 1);
    assert!(store.has(&id));
}

#[test]
fn a_sweep_removes_leftovers_but_not_work_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let crashed = dir.path().join("tmp/crashed");
    fs::create_dir_all(crashed.join("fs/deep")).unwrap();
    fs::write(crashed.join("fs/deep/file"), "half").unwrap();
    let (file, id) = layer("hello");
    let root = dir.path().to_path_buf();
    // Another server starts in the middle of the work.
    let unpacker = Counting::new(move || drop(open(&root)));
    store.add(Blob::whole(&file).unwrap(), Some(&id), "l", &unpacker).unwrap();
    assert!(!crashed.exists());
    assert_eq!(fs::read_to_string(store.tree(&id).join("file")).unwrap(), "hello");
}

#[test]
fn squashed_and_kept_layers_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let squash = open(dir.path());
    let keep =
        LayerStore::open(dir.path(), Ownership::Keep, Limits::default(), &InProcess).unwrap();
    let (file, id) = layer("hello");
    squash.add(Blob::whole(&file).unwrap(), Some(&id), "l", &InProcess).unwrap();
    assert!(squash.has(&id) && !keep.has(&id));
}

#[test]
fn other_users_cannot_reach_layers() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let store = open(&root);
    let (file, id) = layer("hello");
    store.add(Blob::whole(&file).unwrap(), Some(&id), "l", &InProcess).unwrap();
    assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(store.tree(&id)).unwrap().permissions().mode() & 0o777, 0o755);
}
