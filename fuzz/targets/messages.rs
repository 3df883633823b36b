//! Messages between server, spawner and init. A guest that took over its init could send any to
//! the server, and a client's words come to init in them.
#![no_main]

use forkyard_guest::files::proto::{FileReply, FileRequest};
use forkyard_guest::proto::{
    InitMessage, InitRequest, Setup, SpawnerReply, SpawnerRequest, decode, encode,
};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads a message; what was read can be written, and comes out the same when read again.
fn message<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
    if let Ok(message) = decode::<T>(bytes) {
        let first = encode(&message).expect("what was read can be written");
        let again = decode::<T>(&first).expect("and read again");
        assert_eq!(encode(&again).expect("and written"), first);
    }
}

fuzz_target!(|bytes: &[u8]| {
    message::<SpawnerRequest>(bytes);
    message::<SpawnerReply>(bytes);
    message::<InitRequest>(bytes);
    message::<InitMessage>(bytes);
    message::<FileRequest>(bytes);
    message::<FileReply>(bytes);
    message::<Setup>(bytes);
});
