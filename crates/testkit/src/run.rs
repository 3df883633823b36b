//! Running a program to its end, without waiting for ever.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// How long one command line may take before the test gives up.
const COMMAND: Duration = Duration::from_secs(120);

/// Runs a command to its end with `input` on its stdin; panics when it takes over two minutes.
#[track_caller]
pub fn finish(command: &mut Command, input: &[u8]) -> Output {
    finish_within(COMMAND, command, input)
}

/// The same with another limit.
#[track_caller]
pub fn finish_within(limit: Duration, command: &mut Command, input: &[u8]) -> Output {
    let (stdin, empty) = (Stdio::piped(), input.is_empty());
    let mut child = command
        .stdin(if empty { Stdio::null() } else { stdin })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    let pid = Pid::from_child(&child);
    if let Some(mut pipe) = child.stdin.take() {
        let input = input.to_owned();
        // A command that ends without reading all of it is no failure.
        std::thread::spawn(move || pipe.write_all(&input));
    }
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(limit) else {
        let _ = kill_process(pid, Signal::KILL);
        panic!("{command:?} runs {limit:?} already");
    };
    output.unwrap_or_else(|error| panic!("wait for {command:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_input_and_output_do_not_block_each_other() {
        let input = vec![b'x'; 1 << 20];
        let out = finish(&mut Command::new("cat"), &input);
        assert!(out.status.success());
        assert_eq!(out.stdout.len(), input.len());
    }

    #[test]
    fn a_command_without_input_reads_end_of_file() {
        let out = finish(Command::new("sh").args(["-c", "cat; echo $?; echo e >&2"]), b"");
        assert_eq!((&out.stdout[..], &out.stderr[..]), (&b"0\n"[..], &b"e\n"[..]));
    }
}
