//! Files of /proc that guests have a say in: maps and smaps.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| forkyard_snapshot::fuzzing::mappings(bytes));
