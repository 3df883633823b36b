//! A guest's `/etc/passwd` and `/etc/group`, which init reads as process 1 of the sandbox.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], &[u8])| forkyard_guest::fuzzing::accounts(input.0, input.1));
