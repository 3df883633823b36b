//! The pipe that tells of the ends of a session's lines: the guest can write to it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| forkyard_engine::fuzzing::session_ends(bytes));
