//! Writing and reading the messages of a sandbox's life, as they go between server, spawner and
//! init.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use criterion::Criterion;
use forkyard_guest::files::proto::{
    Entry, EntryKind, FileOp, FileReply, FileRequest, INLINE_MAX, WriteTarget,
};
use forkyard_guest::proto::{
    CommandState, Ids, InitBody, InitMessage, InitOk, InitRequest, MountSource, Overlay, Place,
    Setup, SpawnerRequest, Start, Streams, decode, encode,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn main() {
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(700))
        .configure_from_args();
    both_ways(&mut criterion, "spawn", &spawn());
    both_ways(&mut criterion, "start", &request(InitBody::Start(Box::new(start()))));
    both_ways(&mut criterion, "started", &reply(started()));
    both_ways(&mut criterion, "write 64 KiB", &request(InitBody::File(Box::new(write()))));
    both_ways(&mut criterion, "contents 64 KiB", &reply(InitOk::File(contents())));
    both_ways(&mut criterion, "entries 100", &reply(InitOk::File(entries())));
    criterion.final_summary();
}

fn both_ways<T: Serialize + DeserializeOwned>(criterion: &mut Criterion, name: &str, message: &T) {
    let mut group = criterion.benchmark_group(format!("messages/{name}"));
    group.bench_function("encode", |bencher| bencher.iter(|| encode(message).unwrap()));
    let bytes = encode(message).unwrap();
    group.bench_function("decode", |bencher| bencher.iter(|| decode::<T>(&bytes).unwrap()));
    group.finish();
}

fn request(body: InitBody) -> InitRequest {
    InitRequest { seq: 4711, body }
}

fn reply(ok: InitOk) -> InitMessage {
    InitMessage::Reply { seq: 4711, result: Ok(ok) }
}

fn words(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// A sandbox of the `host` image.
fn spawn() -> SpawnerRequest {
    let source =
        |path: &str| MountSource { path: path.to_owned(), read_only: true, recursive: false };
    let paths = ["/usr", "/opt", "/etc/ssl", "/etc/alternatives", "/var/lib/forkyard/host/0"];
    let state = "/var/lib/forkyard/sandboxes/0123456789ab";
    let setup = Setup {
        id: "0123456789ab".to_owned(),
        forks: 0,
        hostname: "0123456789ab".to_owned(),
        host_network: false,
        overlays: ["/", "/usr", "/opt", "/etc"]
            .map(|target| Overlay {
                target: target.to_owned(),
                lowers: vec![0, 4],
                base: Vec::new(),
                name: "root".to_owned(),
            })
            .to_vec(),
        state: 5,
        generation: "g0".to_owned(),
        dev: 6,
        volumes: Vec::new(),
        tmp_size: 1 << 30,
        resolv_conf: None,
        cgroup2: true,
        landlock: true,
        env: words(&["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/root", "LANG=C.UTF-8"]),
        user: "root".to_owned(),
        workdir: "/".to_owned(),
        make_workdir: false,
        session: true,
        deadline: None,
    };
    SpawnerRequest::Spawn {
        seq: 4711,
        place: Place {
            cgroup2: Some("/sys/fs/cgroup/forkyard-default/0123456789ab".to_owned()),
            cgroup1: Vec::new(),
            ids: Ids::Range { base: 1 << 20 },
        },
        sources: paths.into_iter().chain([state, "/var/lib/forkyard/dev"]).map(source).collect(),
        setup: Box::new(setup),
    }
}

fn start() -> Start {
    Start {
        argv: words(&["python3", "-m", "pytest", "-q", "tests"]),
        shell: false,
        env: words(&["CI=1", "PYTHONPATH=/work/src"]),
        cwd: Some("/work".to_owned()),
        user: None,
        tty: None,
        stdin: false,
        detach: false,
        timeout_ms: Some(60_000),
    }
}

fn started() -> InitOk {
    InitOk::Started {
        command: CommandState {
            id: 7,
            pid: 42,
            argv: start().argv,
            tty: false,
            stdin: false,
            detach: false,
            started_at: 1_700_000_000_000,
            exit: None,
        },
        streams: Streams { stdin: false, tty: false, spools: 2 },
    }
}

fn write() -> FileRequest {
    let target = WriteTarget { path: b"/work/src/main.py".to_vec(), ..WriteTarget::default() };
    let op = FileOp::Write { target, contents: vec![b'x'; INLINE_MAX] };
    FileRequest { user: Some("user".to_owned()), op }
}

fn contents() -> FileReply {
    FileReply::Contents { entry: entry(0), contents: vec![b'x'; INLINE_MAX] }
}

fn entries() -> FileReply {
    FileReply::Entries { entries: (0..100).map(entry).collect(), truncated: false }
}

fn entry(n: u32) -> Entry {
    Entry {
        path: format!("src/module_{n}.py").into_bytes(),
        kind: EntryKind::File,
        size: 4096,
        mode: 0o644,
        uid: 1000,
        gid: 1000,
        owner: "user".to_owned(),
        group: "user".to_owned(),
        mtime: 1_700_000_000,
        mtime_nsec: 5,
        target: None,
    }
}
