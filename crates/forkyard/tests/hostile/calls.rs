//! System calls that no guest has business with.

use crate::arena::{Guest, check_refused};
use crate::case::cases;

cases! {
    making_namespaces: "unshare, clone and setns of every kind of namespace"
        => "seccomp", |guest| guest.refused("namespaces", &["EPERM", "EINVAL", "EBADF"]);
    clone3_with_a_user_namespace: "clone3, whose flags a filter cannot see"
        => "seccomp: it is not there, libc falls back to clone",
        |guest| guest.refused("clone3", &["ENOSYS"]);
    kexec_modules_reboot_and_swap: "kexec_load, init_module, delete_module, reboot, swapon, acct, \
        quotactl, vhangup, iopl, sethostname, setdomainname"
        => "seccomp", |guest| guest.refused("machine", &["EPERM", "ENOSYS"]);
    setting_clocks: "settimeofday, clock_settime, adjtimex, clock_adjtime, wake-up alarms"
        => "seccomp; `CAP_SYS_TIME` over the host is needed",
        |guest| guest.refused("clocks", &["EPERM", "EINVAL"]);
    watching_the_kernel: "bpf, perf_event_open, userfaultfd, fanotify, the kernel's log, LSM \
        attributes"
        => "seccomp", |guest| guest.refused("observers", &["EPERM", "ENOSYS"]);
    rings_and_secret_memory: "io_uring, memfd_secret, and the older asynchronous input and output, of \
        which the host has a number for all users together"
        => "seccomp: they are not there", |guest| guest.refused("rings", &["ENOSYS"]);
    keyrings: "add_key, request_key, joining, describing and reading keyrings"
        => "seccomp", |guest| guest.refused("keyrings", &["EPERM"]);
    opening_by_handle: "open_by_handle_at with guessed handles of the host's file system"
        => "seccomp; `CAP_DAC_READ_SEARCH` over the host is needed", handles;
    typing_into_terminals: "TIOCSTI (with high bits set, too), TIOCLINUX, TIOCCONS on its terminal"
        => "seccomp; `CAP_SYS_ADMIN` over the host is needed", terminal;
    weaker_address_spaces: "personality(2): no address randomisation, executable reads, page zero"
        => "seccomp", |guest| guest.refused("personalities", &["EPERM"]);
    calls_of_other_modes: "32-bit calls by int 0x80, x32 calls, numbers above all known"
        => "seccomp: they are not there", |guest| guest.refused("other_modes", &["ENOSYS"]);
    dumping_core: "crashing, to have the host's core dump handler run or a file written"
        => "a core limit of one byte, soft and hard: the kernel starts no handler", core;
}

fn handles(guest: &Guest) {
    let attempts = guest.attack(&["handles"]);
    let opened: Vec<_> =
        attempts.into_iter().filter(|(name, _)| name == "open_by_handle_at").collect();
    assert!(opened.len() > 90);
    check_refused(&opened, &["EPERM"]);
}

fn terminal(guest: &Guest) {
    check_refused(&guest.attack_as(&["--tty"], &["terminal"]), &["EPERM"]);
}

fn core(guest: &Guest) {
    let out = guest.sh("cd /root; ulimit -c unlimited && echo RAISED; ulimit -Hc; \
         sh -c 'kill -SEGV $$'; echo status $?; ls -A /root");
    assert!(!out.contains("RAISED") && !out.contains("unlimited"), "{out}");
    assert!(out.contains("status 139") && !out.contains("core\n"), "{out}");
}
