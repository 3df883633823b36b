//! One message over a channel and back out of it: what every request of a sandbox's life pays
//! twice. In one thread, so without a scheduler's delays.
#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use forkyard_sys::channel::{INLINE, pair, receive, send};

fn main() {
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    by_length(&mut criterion);
    by_descriptors(&mut criterion);
    criterion.final_summary();
}

/// Up to [`INLINE`] bytes lie in the packet, more in a memfd beside it.
fn by_length(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("channel/bytes");
    let (a, b) = pair().unwrap();
    for length in [0, 256, INLINE, INLINE + 1, 64 << 10, 1 << 20] {
        let bytes = vec![b'x'; length];
        group.bench_function(BenchmarkId::from_parameter(length), |bencher| {
            bencher.iter(|| {
                send(&a, &bytes, &[]).unwrap();
                receive(&b).unwrap().unwrap()
            });
        });
    }
    group.finish();
}

/// A started command brings up to five, a new sandbox a dozen; they are closed again here.
fn by_descriptors(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("channel/descriptors");
    let (a, b) = pair().unwrap();
    for count in [1, 5, 12] {
        let descriptors: Vec<BorrowedFd<'_>> = vec![a.as_fd(); count];
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                send(&a, &[b'x'; 256], &descriptors).unwrap();
                receive(&b).unwrap().unwrap()
            });
        });
    }
    group.finish();
}
