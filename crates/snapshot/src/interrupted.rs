//! What a thread was in the middle of when it was stopped, and how it goes on from there.
//!
//! A stop interrupts a blocking system call, which the kernel makes again without the program's
//! knowing; a thread that made other calls meanwhile, or that goes on elsewhere, must come to the
//! same. Numbers of results are those of linux/errno.h that programs never see.

use forkyard_sys::ptrace::{Registers, Rseq};
use forkyard_sys::remote;
use rustix::process::Pid;

/// Made again when no handler has run, or one with `SA_RESTART`.
const RESTART_SYS: i64 = -512;
/// Made again in any case.
const RESTART_NO_INTERRUPT: i64 = -513;
/// Made again when no handler has run.
const RESTART_NO_HANDLER: i64 = -514;
/// Likewise, with what is left to wait.
const RESTART_BLOCK: i64 = -516;

const INTERRUPTED: i64 = -(libc::EINTR as i64);

/// Calls that say `EINTR` to whatever wakes them, and have done nothing then: see "Interruption of
/// system calls by stop signals" in signal(7).
const TELLING: [i64; 18] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_accept,
    libc::SYS_accept4,
];

/// Has the kernel make an interrupted call again that would tell its program of the stop; a signal
/// that waits for the thread is told of all the same.
pub(crate) fn hide_stop(registers: &mut Registers) {
    let call = registers.orig_rax.cast_signed();
    if registers.rax.cast_signed() == INTERRUPTED && TELLING.contains(&call) {
        registers.rax = RESTART_NO_HANDLER.cast_unsigned();
    }
}

/// What the kernel does with an interrupted call when a thread goes on that no signal waits for.
pub(crate) fn restart(registers: &mut Registers, same_thread: bool) {
    const RESTART_SYSCALL: u64 = 219;
    if registers.orig_rax.cast_signed() < 0 {
        return;
    }
    match registers.rax.cast_signed() {
        RESTART_SYS | RESTART_NO_INTERRUPT | RESTART_NO_HANDLER => {
            registers.rax = registers.orig_rax;
        }
        RESTART_BLOCK if same_thread => registers.rax = RESTART_SYSCALL,
        // Only the thread itself knows how much is left to wait.
        RESTART_BLOCK => registers.rax = registers.orig_rax,
        _ => return,
    }
    registers.rip -= 2;
    registers.orig_rax = u64::MAX;
}

/// The same when a handler is about to run, which has these flags.
pub(crate) fn interrupt(registers: &mut Registers, flags: u64) {
    if registers.orig_rax.cast_signed() < 0 {
        return;
    }
    let again = flags & libc::SA_RESTART as u64 != 0;
    match registers.rax.cast_signed() {
        RESTART_SYS if !again => registers.rax = INTERRUPTED.cast_unsigned(),
        RESTART_NO_HANDLER | RESTART_BLOCK => registers.rax = INTERRUPTED.cast_unsigned(),
        _ => return restart(registers, false),
    }
    registers.orig_rax = u64::MAX;
}

/// A thread that is stopped within a restartable sequence goes on where that is aborted: it will
/// not find itself on the same processor, and the kernel forgets the sequence as soon as the thread
/// runs anything else.
pub(crate) fn leave_sequence(pid: Pid, rseq: &Rseq, registers: &mut Registers) {
    if rseq.address == 0 {
        return;
    }
    // What cannot be read is nothing that the thread could be in.
    let read = |at: u64, bytes: &mut [u8]| {
        let length = bytes.len();
        let mut to = [std::io::IoSliceMut::new(bytes)];
        matches!(remote::read_memory(pid, &[(at, length)], &mut to), Ok(count) if count == length)
    };
    let word = |bytes: &[u8], at: usize| {
        let bytes = bytes.get(at..at + 8).unwrap_or_default();
        u64::from_le_bytes(bytes.try_into().unwrap_or_default())
    };
    // `rseq_cs` of `struct rseq`, then `start_ip`, `post_commit_offset`, `abort_ip` there.
    let mut pointer = [0; 8];
    if !read(rseq.address.wrapping_add(8), &mut pointer) || word(&pointer, 0) == 0 {
        return;
    }
    let mut section = [0; 32];
    if !read(word(&pointer, 0), &mut section) {
        return;
    }
    let (start, length, abort) = (word(&section, 8), word(&section, 16), word(&section, 24));
    if registers.rip.wrapping_sub(start) < length {
        registers.rip = abort;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(call: i64, result: i64) -> Registers {
        let mut registers = forkyard_sys::ptrace::no_registers();
        registers.orig_rax = call.cast_unsigned();
        registers.rax = result.cast_unsigned();
        registers.rip = 1002;
        registers
    }

    #[test]
    fn interrupted_calls_are_made_again_unless_a_handler_runs() {
        let mut registers = stopped(libc::SYS_pause, RESTART_NO_HANDLER);
        restart(&mut registers, false);
        assert_eq!((registers.rax, registers.rip), (libc::SYS_pause as u64, 1000));
        let mut registers = stopped(libc::SYS_pause, RESTART_NO_HANDLER);
        interrupt(&mut registers, libc::SA_RESTART as u64);
        assert_eq!((registers.rax.cast_signed(), registers.rip), (INTERRUPTED, 1002));
        let mut registers = stopped(libc::SYS_read, RESTART_SYS);
        interrupt(&mut registers, libc::SA_RESTART as u64);
        assert_eq!((registers.rax, registers.rip), (libc::SYS_read as u64, 1000));
    }

    #[test]
    fn only_calls_that_did_nothing_are_kept_from_telling_of_a_stop() {
        let mut registers = stopped(libc::SYS_epoll_wait, INTERRUPTED);
        hide_stop(&mut registers);
        assert_eq!(registers.rax.cast_signed(), RESTART_NO_HANDLER);
        let mut registers = stopped(libc::SYS_close, INTERRUPTED);
        hide_stop(&mut registers);
        assert_eq!(registers.rax.cast_signed(), INTERRUPTED);
    }
}
