//! The walls around a command: what is prepared once, and what each command then pays.
#![allow(clippy::print_stderr, clippy::unwrap_used)]

use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use criterion::Criterion;
use forkyard_sys::caps::set_no_new_privs;
use forkyard_sys::landlock::{Strength, Wall};
use forkyard_sys::seccomp::Filter;

fn main() {
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    seccomp(&mut criterion);
    landlock(&mut criterion);
    criterion.final_summary();
}

fn seccomp(criterion: &mut Criterion) {
    criterion.bench_function("seccomp/compile", |bencher| bencher.iter(Filter::compile));
    let filter = Filter::compile().unwrap();
    criterion.bench_function("seccomp/install", |bencher| {
        bencher.iter_custom(|times| in_threads(times, || filter.install().unwrap()));
    });
}

fn landlock(criterion: &mut Criterion) {
    let root = File::open(std::env::temp_dir()).unwrap();
    let wall = Wall::prepare(&[root.as_fd()], true).unwrap();
    if wall.strength() == Strength::None {
        eprintln!("skipped: landlock: this kernel has none, see `forkyard doctor`");
        return;
    }
    criterion.bench_function("landlock/prepare", |bencher| {
        bencher.iter(|| Wall::prepare(&[root.as_fd()], true).unwrap());
    });
    criterion.bench_function("landlock/restrict", |bencher| {
        bencher.iter_custom(|times| in_threads(times, || wall.restrict().unwrap()));
    });
}

/// Times what a thread can do to itself once and never undo, in a thread of its own each time.
fn in_threads(times: u64, act: impl Fn() + Sync) -> Duration {
    let once = || {
        set_no_new_privs().unwrap();
        let start = Instant::now();
        act();
        start.elapsed()
    };
    let mut total = Duration::ZERO;
    for _ in 0..times {
        total += std::thread::scope(|scope| scope.spawn(once).join().unwrap());
    }
    total
}
