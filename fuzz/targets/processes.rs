//! Files of /proc that guests have a say in: stat, status and limits.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| forkyard_snapshot::fuzzing::process(bytes));
