//! What the engine does around each request: rows of its database, and answers of a session.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput};
use forkyard_engine::benching::{Rows, session_output};
use forkyard_engine::model::{Sandbox, SandboxId, SandboxSpec, State};

/// About as long as that of a sandbox of the `host` image.
const INTERNAL: &str = r#"{"slot":17,"generation":0,"overlays":[
    {"target":"/","lowers":[0],"name":"root"},{"target":"/usr","lowers":[1],"name":"usr"},
    {"target":"/opt","lowers":[2],"name":"opt"},{"target":"/etc","lowers":[3,4],"name":"etc"}],
    "sources":[{"path":"/var/lib/forkyard/host/0/root","read_only":true,"recursive":false},
    {"path":"/usr","read_only":true,"recursive":false},
    {"path":"/opt","read_only":true,"recursive":false},
    {"path":"/etc","read_only":true,"recursive":false},
    {"path":"/var/lib/forkyard/host/0/etc","read_only":true,"recursive":false},
    {"path":"/var/lib/forkyard/sandboxes/0123456789ab","read_only":false,"recursive":false}],
    "group":{"name":"0123456789ab","dirs":[]},"default_argv":["/bin/bash"],"ephemeral":false}"#;

fn main() {
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    lives(&mut criterion);
    start(&mut criterion);
    outputs(&mut criterion);
    criterion.final_summary();
}

/// The rows of one sandbox's life, alone and with five hundred others alive.
fn lives(criterion: &mut Criterion) {
    for others in [0, 500] {
        let dir = tempfile::tempdir().unwrap();
        let rows = Rows::open(&dir.path().join("db")).unwrap();
        fill(&rows, others);
        let mut group = criterion.benchmark_group(format!("rows beside {others}"));
        // Every sandbox is another one, as in life: rows of events pile up behind them.
        let mut next = others;
        let mut new = move || {
            next += 1;
            sandbox(next)
        };
        group.bench_function("insert", |bencher| {
            bencher.iter_batched(
                &mut new,
                |sandbox| {
                    rows.insert(&sandbox, INTERNAL).unwrap();
                    Alive(&rows, sandbox.id)
                },
                BatchSize::PerIteration,
            );
        });
        group.bench_function("update", |bencher| {
            let sandbox = new();
            rows.insert(&sandbox, INTERNAL).unwrap();
            bencher.iter(|| rows.update(&sandbox, INTERNAL).unwrap());
            rows.remove(&sandbox.id).unwrap();
        });
        group.bench_function("remove", |bencher| {
            bencher.iter_batched(
                || {
                    let sandbox = new();
                    rows.insert(&sandbox, INTERNAL).unwrap();
                    sandbox.id
                },
                |id| rows.remove(&id).unwrap(),
                BatchSize::PerIteration,
            );
        });
        group.finish();
        assert_eq!(rows.read().unwrap(), others as usize);
    }
}

/// What a server reads that takes over five hundred sandboxes.
fn start(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let rows = Rows::open(&dir.path().join("db")).unwrap();
    fill(&rows, 500);
    criterion.bench_function("read 500 rows", |bencher| bencher.iter(|| rows.read().unwrap()));
}

/// Bytes of a session's line become text, and base64 where they are none.
fn outputs(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("session output");
    let line = b"tests/test_paths.py::test_join PASSED\n";
    let text = line.repeat((1 << 20) / line.len());
    let mut binary = text.clone();
    binary.iter_mut().step_by(3).for_each(|byte| *byte = 0xff);
    for (name, bytes) in [("1 MiB of text", text), ("1 MiB that is no text", binary)] {
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_batched(|| bytes.clone(), session_output, BatchSize::LargeInput);
        });
    }
    group.finish();
}

/// A row that goes again when it is dropped, which is not timed.
struct Alive<'a>(&'a Rows, SandboxId);

impl Drop for Alive<'_> {
    fn drop(&mut self) {
        self.0.remove(&self.1).unwrap();
    }
}

fn fill(rows: &Rows, count: u32) {
    for n in 1..=count {
        rows.insert(&sandbox(n), INTERNAL).unwrap();
    }
}

fn sandbox(n: u32) -> Sandbox {
    Sandbox {
        id: format!("{n:012}").parse().unwrap(),
        name: Some(format!("agent-{n}")),
        image: "host".to_owned(),
        state: State::Running,
        reason: None,
        created_at: 1_700_000_000_000,
        started_at: Some(1_700_000_000_003),
        ended_at: None,
        deadline: None,
        parent: None,
        pid: Some(n),
        spec: SandboxSpec::default(),
        usage: None,
    }
}
