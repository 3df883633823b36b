//! Layers on their way into the store: unpacked from each compression, and digests checked.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::hint::black_box;
use std::io::Write as _;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput};
use forkyard_image::{Digest, Limits, Ownership, UnpackJob, unpack};
use tempfile::TempDir;

fn main() {
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    layers(&mut criterion);
    digests(&mut criterion);
    criterion.final_summary();
}

fn layers(criterion: &mut Criterion) {
    let shapes = [
        ("2,000 files of 2 KiB", archive(2000, 2 << 10)),
        ("4 files of 4 MiB", archive(4, 4 << 20)),
    ];
    for (shape, plain) in shapes {
        let mut group = criterion.benchmark_group(format!("unpack {shape}"));
        group.throughput(Throughput::Bytes(plain.len() as u64));
        for (name, bytes) in [("gzip", gzip(&plain)), ("zstd", zstd(&plain)), ("plain", plain)] {
            let mut blob = tempfile::tempfile().unwrap();
            blob.write_all(&bytes).unwrap();
            let length = bytes.len() as u64;
            group.bench_function(name, |bencher| {
                bencher.iter_batched(
                    tempfile::tempdir,
                    // The directory is given back, so that its removal is not timed.
                    |dir| unpacked(&blob, length, dir.unwrap()),
                    BatchSize::PerIteration,
                );
            });
        }
        group.finish();
    }
}

fn unpacked(blob: &File, length: u64, dir: TempDir) -> TempDir {
    let job = UnpackJob {
        blob: blob.try_clone().unwrap(),
        offset: 0,
        length,
        destination: File::open(dir.path()).unwrap().into(),
        // What needs no root.
        ownership: Ownership::Squash,
        limits: Limits::default(),
    };
    unpack(&job).unwrap();
    dir
}

/// As a blob is checked when it has arrived.
fn digests(criterion: &mut Criterion) {
    let bytes = half_random(8 << 20);
    let sha256 = Digest::sha256_of(&bytes);
    let mut group = criterion.benchmark_group("digest 8 MiB");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("sha256", |bencher| {
        bencher.iter(|| assert!(sha256.matches(black_box(&bytes))));
    });
    let sha512: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
    group.bench_function("sha512", |bencher| {
        bencher.iter(|| assert!(!sha512.matches(black_box(&bytes))));
    });
    group.finish();
}

/// An archive of directories with a hundred files each.
fn archive(files: usize, size: usize) -> Vec<u8> {
    let contents = half_random(size);
    let mut builder = tar::Builder::new(Vec::new());
    for n in 0..files {
        let mut header = tar::Header::new_gnu();
        header.set_size(size as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        let name = format!("usr/lib/python3/dist-packages/package{}/module{n}.py", n / 100);
        builder.append_data(&mut header, name, contents.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Bytes that compress to about half, as those of programs do; the same ones in each run.
fn half_random(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let random = move |at: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if at % 64 < 32 { b'a' } else { (state >> 32) as u8 }
    };
    (0..length).map(random).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 3).unwrap()
}
