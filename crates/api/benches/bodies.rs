//! What the server writes and reads around each request: frames of a command's stream, and JSON.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use forkyard_api::routes::SessionRun;
use forkyard_api::stream::{HEADER, Kind, MAX_PAYLOAD, header, parse_header};
use forkyard_engine::model::{CommandSpec, Sandbox, SandboxSpec, SessionOutput, State};

fn main() {
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(700))
        .configure_from_args();
    frames(&mut criterion);
    requests(&mut criterion);
    answers(&mut criterion);
    criterion.final_summary();
}

/// A MiB of output in frames of the largest size, and of 80 bytes: a line each.
fn frames(criterion: &mut Criterion) {
    const TOTAL: usize = 1 << 20;
    let output = vec![b'x'; TOTAL];
    let mut group = criterion.benchmark_group("frames of 1 MiB");
    for payload in [80, MAX_PAYLOAD] {
        group.bench_function(format!("encode, {payload} B each"), |bencher| {
            bencher.iter(|| encoded(&output, payload));
        });
        let stream = encoded(&output, payload);
        assert_eq!(payload_of(&stream), TOTAL);
        group.bench_function(format!("decode, {payload} B each"), |bencher| {
            bencher.iter(|| payload_of(black_box(&stream)));
        });
    }
    group.finish();
}

fn encoded(output: &[u8], payload: usize) -> Vec<u8> {
    let frames = output.len().div_ceil(payload);
    let mut stream = Vec::with_capacity(output.len() + frames * HEADER);
    for part in output.chunks(payload) {
        stream.extend_from_slice(&header(Kind::Stdout, part.len()));
        stream.extend_from_slice(part);
    }
    stream
}

fn payload_of(mut stream: &[u8]) -> usize {
    let mut total = 0;
    while let Some((head, rest)) = stream.split_first_chunk::<HEADER>() {
        let (kind, length) = parse_header(*head).unwrap();
        assert_eq!(kind, Kind::Stdout);
        total += length;
        stream = rest.get(length..).unwrap();
    }
    total
}

/// Bodies as clients send them.
fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("requests");
    let line = br#"{"command":"cd /work && python3 -m pytest -q tests","timeout_ms":60000}"#;
    group.bench_function("session", |bencher| {
        bencher.iter(|| serde_json::from_slice::<SessionRun>(black_box(line)).unwrap());
    });
    let command = br#"{"argv":["python3","-m","pytest","-q"],"cwd":"/work","env":{"CI":"1"}}"#;
    group.bench_function("command", |bencher| {
        bencher.iter(|| serde_json::from_slice::<CommandSpec>(black_box(command)).unwrap());
    });
    let sandbox = br#"{"image":"host","name":"agent-1","limits":{"memory":268435456,"cpus":1.0},
        "env":{"LANG":"C.UTF-8"},"metadata":{"task":"4711"}}"#;
    group.bench_function("sandbox", |bencher| {
        bencher.iter(|| serde_json::from_slice::<SandboxSpec>(black_box(sandbox)).unwrap());
    });
    group.finish();
}

/// Bodies as the server sends them.
fn answers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("answers");
    let sandbox = sandbox();
    group.bench_function("sandbox", |bencher| {
        bencher.iter(|| serde_json::to_vec(black_box(&sandbox)).unwrap());
    });
    let text = "tests/test_paths.py::test_join PASSED  \u{2713}\n";
    for (name, stdout) in [
        ("session, 6 B", "hello\n".to_owned()),
        ("session, 1 MiB of lines", text.repeat((1 << 20) / text.len())),
        ("session, 1 MiB of control characters", "\u{1}".repeat(1 << 20)),
    ] {
        let output = session(stdout);
        group.throughput(Throughput::Bytes(output.stdout.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| serde_json::to_vec(black_box(&output)).unwrap());
        });
    }
    group.finish();
}

fn session(stdout: String) -> SessionOutput {
    SessionOutput {
        exit_code: 0,
        stdout,
        stderr: String::new(),
        stdout_base64: None,
        stderr_base64: None,
        truncated: false,
        timed_out: false,
        oom: false,
        shell_ended: false,
    }
}

fn sandbox() -> Sandbox {
    Sandbox {
        id: "0123456789ab".parse().unwrap(),
        name: Some("agent-1".to_owned()),
        image: "host".to_owned(),
        state: State::Running,
        reason: None,
        created_at: 1_700_000_000_000,
        started_at: Some(1_700_000_000_003),
        ended_at: None,
        deadline: None,
        parent: None,
        pid: Some(4711),
        spec: SandboxSpec::default(),
        usage: None,
    }
}
