//! What clients send: frames of a command's stream, and bodies of requests.
#![no_main]

use forkyard_api::routes::{Import, Pull, Run, SessionRun, Signal, Timeout};
use forkyard_api::stream::{HEADER, Kind, MAX_PAYLOAD, header, parse_header};
use forkyard_engine::model::{CommandSpec, SandboxSpec, TerminalSize};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads a value; what was read can be written and read again.
fn value<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(bytes) {
        let json = serde_json::to_vec(&value).expect("what was read can be written");
        serde_json::from_slice::<T>(&json).expect("and read again");
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Some((head, more)) = rest.split_first_chunk::<HEADER>() {
        let Ok((kind, length)) = parse_header(*head) else { break };
        assert!(length <= MAX_PAYLOAD);
        assert_eq!(header(kind, length), *head);
        let Some((payload, more)) = more.split_at_checked(length) else { break };
        match kind {
            Kind::Resize => value::<TerminalSize>(payload),
            Kind::Signal => value::<Signal>(payload),
            _ => {}
        }
        rest = more;
    }
    value::<Run>(bytes);
    value::<SandboxSpec>(bytes);
    value::<CommandSpec>(bytes);
    value::<SessionRun>(bytes);
    value::<Timeout>(bytes);
    value::<Pull>(bytes);
    value::<Import>(bytes);
});
