//! The `forkyard` binary: the command line, and the server it starts on demand.
//!
//! Every command but a few is a client of the server: [`args`] says what can be asked,
//! [`commands`] asks it through [`client`], [`stdio`] joins a terminal to a command in a sandbox,
//! and [`render`] is the only place that writes to stdout and stderr.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod client;
mod commands;
mod doctor;
mod error;
mod paths;
mod quickstart;
mod render;
mod serve;
mod stdio;

use std::process::ExitCode;

fn main() -> ExitCode {
    // The server starts this program again as its spawner, which must stay small and have one
    // thread: nothing else is set up for it.
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("spawner") {
        let [mode, files] = [(); 2].map(|()| args.next().unwrap_or_default());
        return ExitCode::from(forkyard_engine::spawner_main(&mode, &files) as u8);
    }
    let outcome = args::parse().and_then(commands::dispatch);
    let code = outcome.unwrap_or_else(|error| {
        render::error(&error);
        error.exit_code()
    });
    ExitCode::from(code)
}
