//! The confinement of commands against the real kernel, as namespace root and as nobody.

#![allow(clippy::print_stderr)] // A skipped test says so.

#[path = "confine_common/mod.rs"]
mod common;

use std::io;

use common::{Who, confine, in_child, run_confined, turn_into};
use forkyard_sys::seccomp::Filter;

const BOTH: [Who; 2] = [Who::NamespaceRoot, Who::Nobody];

type Call = (&'static str, libc::c_long, [u64; 3], i32);

/// Calls that are refused, with what they fail with. The arguments do no harm where the call goes
/// through after all.
const REFUSED: &[Call] = &[
    ("unshare", libc::SYS_unshare, [0, 0, 0], libc::EPERM),
    ("setns", libc::SYS_setns, [u64::MAX, 0, 0], libc::EPERM),
    ("mount", libc::SYS_mount, [1, 1, 1], libc::EPERM),
    ("umount2", libc::SYS_umount2, [1, 0, 0], libc::EPERM),
    ("pivot_root", libc::SYS_pivot_root, [1, 1, 0], libc::EPERM),
    ("fsopen", libc::SYS_fsopen, [1, 0, 0], libc::EPERM),
    ("fsmount", libc::SYS_fsmount, [u64::MAX, 0, 0], libc::EPERM),
    ("fsconfig", libc::SYS_fsconfig, [u64::MAX, 0, 0], libc::EPERM),
    ("fspick", libc::SYS_fspick, [u64::MAX, 1, 0], libc::EPERM),
    ("open_tree", libc::SYS_open_tree, [u64::MAX, 1, 0], libc::EPERM),
    ("move_mount", libc::SYS_move_mount, [u64::MAX, 1, u64::MAX], libc::EPERM),
    ("mount_setattr", libc::SYS_mount_setattr, [u64::MAX, 1, 0], libc::EPERM),
    ("bpf", libc::SYS_bpf, [u64::MAX, 0, 0], libc::EPERM),
    ("perf_event_open", libc::SYS_perf_event_open, [1, 0, 0], libc::EPERM),
    ("userfaultfd", libc::SYS_userfaultfd, [u64::MAX, 0, 0], libc::EPERM),
    ("keyctl", libc::SYS_keyctl, [u64::MAX, 0, 0], libc::EPERM),
    ("add_key", libc::SYS_add_key, [1, 1, 0], libc::EPERM),
    ("request_key", libc::SYS_request_key, [1, 1, 0], libc::EPERM),
    ("kexec_load", libc::SYS_kexec_load, [0, u64::MAX, 0], libc::EPERM),
    ("kexec_file_load", libc::SYS_kexec_file_load, [u64::MAX, 0, 0], libc::EPERM),
    ("init_module", libc::SYS_init_module, [0, 0, 0], libc::EPERM),
    ("finit_module", libc::SYS_finit_module, [u64::MAX, 0, 0], libc::EPERM),
    ("delete_module", libc::SYS_delete_module, [1, 0, 0], libc::EPERM),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, [u64::MAX, 1, 0], libc::EPERM),
    ("swapon", libc::SYS_swapon, [1, 0, 0], libc::EPERM),
    ("swapoff", libc::SYS_swapoff, [1, 0, 0], libc::EPERM),
    ("reboot", libc::SYS_reboot, [0, 0, 0], libc::EPERM),
    ("quotactl", libc::SYS_quotactl, [u64::MAX, 1, 0], libc::EPERM),
    ("acct", libc::SYS_acct, [1, 0, 0], libc::EPERM),
    ("syslog", libc::SYS_syslog, [u64::MAX, 0, 0], libc::EPERM),
    ("sethostname", libc::SYS_sethostname, [1, u64::MAX, 0], libc::EPERM),
    ("setdomainname", libc::SYS_setdomainname, [1, u64::MAX, 0], libc::EPERM),
    ("settimeofday", libc::SYS_settimeofday, [1, 0, 0], libc::EPERM),
    ("clock_settime", libc::SYS_clock_settime, [u64::MAX, 0, 0], libc::EPERM),
    ("fanotify_init", libc::SYS_fanotify_init, [u64::MAX, 0, 0], libc::EPERM),
    ("kcmp", libc::SYS_kcmp, [0, 0, u64::MAX], libc::EPERM),
    ("pidfd_getfd", libc::SYS_pidfd_getfd, [u64::MAX, 0, 0], libc::EPERM),
    ("process_madvise", libc::SYS_process_madvise, [u64::MAX, 0, 0], libc::EPERM),
    ("mbind", libc::SYS_mbind, [0, 0, 0], libc::EPERM),
    ("move_pages", libc::SYS_move_pages, [0, 0, 0], libc::EPERM),
    ("clone into a user namespace", libc::SYS_clone, [0x1000_0011, 0, 0], libc::EPERM),
    ("clone into a mount namespace", libc::SYS_clone, [0x0002_0011, 0, 0], libc::EPERM),
    ("personality", libc::SYS_personality, [0x0040_0000, 0, 0], libc::EPERM),
    ("TIOCSTI", libc::SYS_ioctl, [0, 0x5412, 1], libc::EPERM),
    ("TIOCSTI with a high bit", libc::SYS_ioctl, [0, 1 << 32 | 0x5412, 1], libc::EPERM),
    ("TIOCLINUX", libc::SYS_ioctl, [0, 0x541c, 1], libc::EPERM),
    ("clone3", libc::SYS_clone3, [0, 0, 0], libc::ENOSYS),
    ("io_uring_setup", libc::SYS_io_uring_setup, [0, 0, 0], libc::ENOSYS),
    ("io_uring_enter", libc::SYS_io_uring_enter, [u64::MAX, 0, 0], libc::ENOSYS),
    ("io_uring_register", libc::SYS_io_uring_register, [u64::MAX, 0, 0], libc::ENOSYS),
    ("memfd_secret", libc::SYS_memfd_secret, [u64::MAX, 0, 0], libc::ENOSYS),
    ("landlock_create_ruleset", libc::SYS_landlock_create_ruleset, [0, 0, 1], libc::ENOSYS),
    ("landlock_restrict_self", libc::SYS_landlock_restrict_self, [u64::MAX, 0, 0], libc::ENOSYS),
    #[cfg(target_arch = "x86_64")]
    ("modify_ldt", libc::SYS_modify_ldt, [0, 0, 0], libc::ENOSYS),
    ("a call of the future", 600, [0, 0, 0], libc::ENOSYS),
    ("AF_ALG", libc::SYS_socket, [38, 5, 0], libc::EAFNOSUPPORT),
    ("AF_VSOCK", libc::SYS_socket, [40, 1, 0], libc::EAFNOSUPPORT),
    ("AF_TIPC", libc::SYS_socketpair, [30, 1, 0], libc::EAFNOSUPPORT),
    ("netlink audit", libc::SYS_socket, [16, 3, 9], libc::EPROTONOSUPPORT),
    ("netlink netfilter", libc::SYS_socket, [16, 3, 12], libc::EPROTONOSUPPORT),
];

/// Makes a call and returns its errno, 0 for success; a descriptor it returns stays open.
fn errno_of((_, number, [a, b, c], _): &Call) -> i32 {
    // SAFETY: every call of the tables takes numbers, or addresses that the kernel finds unmapped
    // and refuses.
    let result = unsafe { libc::syscall(*number, *a, *b, *c, 0_u64, 0_u64, 0_u64) };
    if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
}

#[test]
fn refused_calls_fail_with_their_errno() {
    let filter = Filter::compile().expect("compile");
    for who in BOTH {
        let answers = in_child(|| {
            confine(who, &filter)?;
            Ok(REFUSED.iter().map(errno_of).collect())
        });
        assert_eq!(answers.len(), REFUSED.len());
        for (call, errno) in REFUSED.iter().zip(answers) {
            assert_eq!(errno, call.3, "{} as {who:?}", call.0);
        }
    }
}

#[test]
fn it_is_the_filter_that_refuses() {
    let telling = ["unshare", "setns", "clone3", "add_key", "AF_TIPC", "a call of the future"];
    let telling: Vec<&Call> = REFUSED.iter().filter(|call| telling.contains(&call.0)).collect();
    let free = in_child(|| {
        turn_into(Who::NamespaceRoot)?;
        Ok(telling.iter().map(|call| errno_of(call)).collect())
    });
    let same = telling.iter().zip(free).filter(|(call, errno)| *errno == call.3);
    // The call of the future exists nowhere, and TIPC not in every kernel.
    let same: Vec<_> = same.map(|(call, _)| call.0).filter(|name| *name != "AF_TIPC").collect();
    assert_eq!(same, ["a call of the future"]);
}

#[test]
fn allowed_calls_succeed() {
    let filter = Filter::compile().expect("compile");
    let calls: &[Call] = &[
        ("unix", libc::SYS_socket, [1, 1, 0], 0),
        ("inet", libc::SYS_socket, [2, 1, 0], 0),
        ("netlink route", libc::SYS_socket, [16, 3, 0], 0),
        ("netlink sock_diag", libc::SYS_socket, [16, 3, 4], 0),
        ("personality query", libc::SYS_personality, [0xffff_ffff, 0, 0], 0),
        ("getpid", libc::SYS_getpid, [0; 3], 0),
    ];
    for who in BOTH {
        let answers = in_child(|| {
            confine(who, &filter)?;
            Ok(calls.iter().map(errno_of).collect())
        });
        for (call, errno) in calls.iter().zip(answers) {
            assert_eq!(errno, 0, "{} as {who:?}", call.0);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn calls_of_32_bit_programs_do_not_exist() {
    fn getpid_by_int_0x80() -> i32 {
        let mut value: u64 = 20;
        // SAFETY: i386 `getpid` takes no arguments and touches no memory; the kernel clears r8 to
        // r11 on this path, which are declared.
        unsafe {
            std::arch::asm!("int 0x80", inlateout("rax") value, out("r8") _, out("r9") _,
                out("r10") _, out("r11") _, options(nostack));
        }
        value as i32
    }
    const X32: libc::c_long = 0x4000_0000;
    let filter = Filter::compile().expect("compile");
    let x32: Call = ("x32 getpid", X32 | libc::SYS_getpid, [0; 3], libc::ENOSYS);
    let answers = in_child(|| {
        confine(Who::Nobody, &filter)?;
        Ok(vec![errno_of(&x32)])
    });
    assert_eq!(answers, [libc::ENOSYS], "x32");

    // A kernel without 32-bit support kills the caller instead.
    // SAFETY: the child makes one call and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let pid = getpid_by_int_0x80();
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(pid <= 0)) };
    }
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    if status != 0 {
        eprintln!("skipped: this kernel runs no 32-bit calls");
        return;
    }
    let answers = in_child(|| {
        confine(Who::Nobody, &filter)?;
        Ok(vec![getpid_by_int_0x80()])
    });
    assert_eq!(answers, [-libc::ENOSYS], "int 0x80");
}

#[test]
fn commands_hold_the_default_capabilities_or_none() {
    for (who, held) in [(Who::NamespaceRoot, "00000000a80425fb"), (Who::Nobody, "0000000000000000")]
    {
        let output = run_confined(who, "cat", &["/proc/self/status"]).expect("run cat");
        let text = String::from_utf8(output.stdout).expect("text");
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim_start_matches(':').trim().to_owned())
        };
        let none = Some("0000000000000000".to_owned());
        assert_eq!(field("CapEff"), Some(held.to_owned()), "{who:?}");
        assert_eq!(field("CapPrm"), Some(held.to_owned()), "{who:?}");
        assert_eq!((field("CapInh"), field("CapAmb")), (none.clone(), none), "{who:?}");
        if who == Who::NamespaceRoot {
            assert_eq!(field("CapBnd"), Some(held.to_owned()));
        }
        assert_eq!(field("NoNewPrivs").as_deref(), Some("1"));
        assert_eq!(field("Seccomp").as_deref(), Some("2"));
    }
}

#[test]
fn ordinary_programs_run() {
    let script = "ls -l / | grep -q etc && (sleep 0 & wait) && x=$(echo hi | tr h H) && echo $x";
    for who in BOTH {
        let output = run_confined(who, "bash", &["-c", script]).expect("run bash");
        assert_eq!(output.stdout, b"Hi\n", "{who:?}: {output:?}");
    }
}

#[test]
fn python_runs_threads_subprocesses_and_sockets() {
    let script = r"
import asyncio, socket, subprocess, sys, threading
seen = []
threads = [threading.Thread(target=seen.append, args=(n,)) for n in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
assert sorted(seen) == list(range(8))
assert subprocess.run(['true']).returncode == 0
listener = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(listener.getsockname())
async def main():
    child = await asyncio.create_subprocess_exec('echo', 'out', stdout=subprocess.PIPE)
    return (await child.communicate())[0]
assert asyncio.run(main()) == b'out\n'
print('done')
";
    for who in BOTH {
        match run_confined(who, "/usr/bin/python3", &["-c", script]) {
            Ok(output) => assert_eq!(output.stdout, b"done\n", "{who:?}: {output:?}"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("skipped: no /usr/bin/python3 here");
            }
            Err(error) => panic!("python3: {error}"),
        }
    }
}
