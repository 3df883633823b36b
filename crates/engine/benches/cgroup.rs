//! The control groups of a sandbox: made, looked at, removed. Where this process may make none
//! (without root and without delegation) it is skipped.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use criterion::{BatchSize, Criterion};
use forkyard_engine::cgroup::{Cgroups, Controller, Group};
use forkyard_engine::model::{Limits, SandboxId};

fn main() {
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    // Another tag than that of any server, or of a bench that runs beside it.
    let base = Base(Cgroups::detect(&format!("bench-{}", std::process::id())).unwrap());
    groups(&mut criterion, &base.0);
    drop(base);
    criterion.final_summary();
}

fn groups(criterion: &mut Criterion, cgroups: &Cgroups) {
    if cgroups.offers(Controller::Memory).is_none() || cgroups.offers(Controller::Pids).is_none() {
        let lacks: Vec<String> = cgroups.lacks().iter().map(ToString::to_string).collect();
        forkyard_testkit::skip!("{}", lacks.join("; "));
    }
    let id: SandboxId = "0123456789ab".parse().unwrap();
    let limits = Limits { memory: Some(256 << 20), ..Limits::default() };
    let make = || cgroups.create(&id, &limits).unwrap();
    let remove = |group: &Group| group.remove(Duration::from_secs(20)).unwrap();
    let mut benches = criterion.benchmark_group("cgroup");
    benches.bench_function("create and remove", |bencher| bencher.iter(|| remove(&make())));
    benches.bench_function("remove", |bencher| {
        bencher.iter_batched(make, |group| remove(&group), BatchSize::PerIteration);
    });
    let group = make();
    benches.bench_function("usage", |bencher| bencher.iter(|| group.usage()));
    remove(&group);
    benches.finish();
}

/// The base groups, removed with all in them, after a panic too.
struct Base(Cgroups);

impl Drop for Base {
    fn drop(&mut self) {
        let _ = self.0.sweep(&BTreeSet::new());
        let _ = self.0.retire();
    }
}
