//! What the profile says of each system call.

use libc::c_long;

/// The highest call number that the profile knows (`removexattrat`); numbers above are answered
/// with `ENOSYS`, as are x32 calls, whose numbers have bit 30 set.
const LAST_KNOWN: u32 = 466;

/// Numbers that no call has on this processor: after the older tables ended, all processors went
/// on together from 424.
#[cfg(target_arch = "x86_64")]
const UNUSED: std::ops::Range<u32> = 336..424;
#[cfg(target_arch = "aarch64")]
const UNUSED: std::ops::Range<u32> = 295..424;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// It is made.
    Allow,
    /// It fails with this errno.
    Refuse(i32),
    /// Its thread stops for its tracer; without one it fails with `ENOSYS`.
    Trace,
    /// It depends on an argument.
    Switch(&'static Switch),
}

/// A decision by the low 32 bits of one argument: the first case that matches counts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Switch {
    /// Number of the argument, from 0.
    pub(super) argument: u8,
    /// What to look for, and what then.
    pub(super) cases: &'static [(Match, Rule)],
    /// What if no case matches.
    pub(super) otherwise: Rule,
}

/// A test of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// All are as given.
    Equal(u32),
    /// One of the given ones is set.
    AnyBit(u32),
}

const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// `CLONE_NEWTIME` is not among them: its bit is part of the exit signal in `clone`.
static CLONE: Switch = Switch {
    argument: 0,
    cases: &[(Match::AnyBit(NAMESPACES), Rule::Refuse(libc::EPERM))],
    otherwise: Rule::Allow,
};

/// Plain Linux, the 32-bit `uname` and the older release number, as Docker has it; all ones asks
/// what is set.
static PERSONALITY: Switch = Switch {
    argument: 0,
    cases: &[
        (Match::Equal(0), Rule::Allow),
        (Match::Equal(0x8), Rule::Allow),
        (Match::Equal(0x2_0000), Rule::Allow),
        (Match::Equal(0x2_0008), Rule::Allow),
        (Match::Equal(u32::MAX), Rule::Allow),
    ],
    otherwise: Rule::Refuse(libc::EPERM),
};

static SOCKET: Switch = Switch {
    argument: 0,
    cases: &[
        (Match::Equal(libc::AF_UNIX as u32), Rule::Allow),
        (Match::Equal(libc::AF_INET as u32), Rule::Allow),
        (Match::Equal(libc::AF_INET6 as u32), Rule::Allow),
        (Match::Equal(libc::AF_NETLINK as u32), Rule::Switch(&NETLINK)),
        (Match::Equal(libc::AF_PACKET as u32), Rule::Allow),
    ],
    otherwise: Rule::Refuse(libc::EAFNOSUPPORT),
};

static NETLINK: Switch = Switch {
    argument: 2,
    cases: &[
        (Match::Equal(libc::NETLINK_ROUTE as u32), Rule::Allow),
        (Match::Equal(libc::NETLINK_SOCK_DIAG as u32), Rule::Allow),
        (Match::Equal(libc::NETLINK_KOBJECT_UEVENT as u32), Rule::Allow),
        (Match::Equal(libc::NETLINK_GENERIC as u32), Rule::Allow),
    ],
    otherwise: Rule::Refuse(libc::EPROTONOSUPPORT),
};

static IOCTL: Switch = Switch {
    argument: 1,
    cases: &[
        (Match::Equal(libc::TIOCSTI as u32), Rule::Refuse(libc::EPERM)),
        (Match::Equal(libc::TIOCLINUX as u32), Rule::Refuse(libc::EPERM)),
    ],
    otherwise: Rule::Allow,
};

/// Limits of process 1, init, are not the guest's: with those of processor time, descriptors or
/// file sizes it could end or lame what answers for it. Init has the guest's root as its user, so
/// the kernel would let it.
static PRLIMIT: Switch = Switch {
    argument: 0,
    cases: &[(Match::Equal(1), Rule::Refuse(libc::EPERM))],
    otherwise: Rule::Allow,
};

/// Marks on what a process writes, in the one form that live fork asks for; see
/// [`crate::userfault`].
static USERFAULTFD: Switch = Switch {
    argument: 0,
    cases: &[(Match::Equal(crate::userfault::FLAGS), Rule::Trace)],
    otherwise: Rule::Refuse(libc::EPERM),
};

/// The rule of each call number from 0 to [`LAST_KNOWN`].
pub(super) fn rules() -> Vec<Rule> {
    let mut rules = vec![Rule::Refuse(libc::EPERM); LAST_KNOWN as usize + 1];
    let mut set = |number: usize, rule: Rule| {
        if let Some(slot) = rules.get_mut(number) {
            *slot = rule;
        }
    };
    for number in UNUSED.map(c_long::from).chain(ABSENT.iter().copied()) {
        set(number as usize, Rule::Refuse(libc::ENOSYS));
    }
    for number in EVERYWHERE.iter().chain(HERE).chain(UNNAMED) {
        set(*number as usize, Rule::Allow);
    }
    for (number, switch) in [
        (libc::SYS_clone, &CLONE),
        (libc::SYS_personality, &PERSONALITY),
        (libc::SYS_socket, &SOCKET),
        (libc::SYS_socketpair, &SOCKET),
        (libc::SYS_ioctl, &IOCTL),
        (libc::SYS_prlimit64, &PRLIMIT),
        (libc::SYS_userfaultfd, &USERFAULTFD),
    ] {
        set(number as usize, Rule::Switch(switch));
    }
    set(crate::stub::TRAP_CALL as usize, Rule::Trace);
    rules
}

/// Refused as if the kernel did not have them.
const ABSENT: &[c_long] = &[
    libc::SYS_clone3,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_setup,
    libc::SYS_memfd_secret,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// A list of call numbers by their libc names.
macro_rules! calls {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// Allowed on both processors.
const EVERYWHERE: &[c_long] = calls! {
    SYS_accept SYS_accept4 SYS_adjtimex SYS_bind SYS_brk SYS_capget SYS_capset SYS_chdir SYS_chroot
    SYS_clock_adjtime SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_close SYS_connect
    SYS_copy_file_range SYS_dup SYS_dup3 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait
    SYS_eventfd2 SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_faccessat SYS_fadvise64
    SYS_fallocate SYS_fanotify_mark SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat
    SYS_fcntl SYS_fdatasync SYS_fgetxattr SYS_flistxattr SYS_flock SYS_fremovexattr SYS_fsetxattr
    SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex SYS_get_robust_list SYS_getcpu
    SYS_getcwd SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getitimer
    SYS_getpeername SYS_getpgid SYS_getpid SYS_getppid SYS_getpriority SYS_getrandom SYS_getresgid
    SYS_getresuid SYS_getrusage SYS_getsid SYS_getsockname SYS_getsockopt SYS_gettid
    SYS_gettimeofday SYS_getuid SYS_getxattr SYS_inotify_add_watch SYS_inotify_init1
    SYS_inotify_rm_watch SYS_io_cancel SYS_io_destroy SYS_io_getevents SYS_io_submit
    SYS_ioprio_get SYS_ioprio_set SYS_kill SYS_lgetxattr SYS_linkat SYS_listen SYS_listxattr
    SYS_llistxattr SYS_lremovexattr SYS_lseek SYS_lsetxattr SYS_madvise SYS_membarrier
    SYS_memfd_create SYS_mincore SYS_mkdirat SYS_mknodat SYS_mlock SYS_mlock2 SYS_mlockall SYS_mmap
    SYS_mprotect SYS_mq_getsetattr SYS_mq_notify SYS_mq_open SYS_mq_timedreceive SYS_mq_timedsend
    SYS_mq_unlink SYS_mremap SYS_msgctl SYS_msgget SYS_msgrcv SYS_msgsnd SYS_msync SYS_munlock
    SYS_munlockall SYS_munmap SYS_name_to_handle_at SYS_nanosleep SYS_newfstatat SYS_openat
    SYS_pipe2 SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect SYS_ppoll SYS_prctl SYS_pread64
    SYS_preadv SYS_preadv2 SYS_process_vm_readv SYS_process_vm_writev SYS_pselect6
    SYS_ptrace SYS_pwrite64 SYS_pwritev SYS_pwritev2 SYS_read SYS_readahead SYS_readlinkat
    SYS_readv SYS_recvfrom SYS_recvmmsg SYS_recvmsg SYS_remap_file_pages SYS_removexattr
    SYS_renameat2 SYS_restart_syscall SYS_rseq SYS_rt_sigaction SYS_rt_sigpending
    SYS_rt_sigprocmask SYS_rt_sigqueueinfo SYS_rt_sigreturn SYS_rt_sigsuspend SYS_rt_sigtimedwait
    SYS_rt_tgsigqueueinfo SYS_sched_get_priority_max SYS_sched_get_priority_min
    SYS_sched_getaffinity SYS_sched_getattr SYS_sched_getparam SYS_sched_getscheduler
    SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_setattr SYS_sched_setparam
    SYS_sched_setscheduler SYS_sched_yield SYS_seccomp SYS_semctl SYS_semget SYS_semop
    SYS_semtimedop SYS_sendfile SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_set_robust_list
    SYS_set_tid_address SYS_setfsgid SYS_setfsuid SYS_setgid SYS_setgroups SYS_setitimer
    SYS_setpgid SYS_setpriority SYS_setregid SYS_setresgid SYS_setresuid SYS_setreuid SYS_setsid
    SYS_setsockopt SYS_setuid SYS_setxattr SYS_shmat SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown
    SYS_sigaltstack SYS_signalfd4 SYS_splice SYS_statfs SYS_statx SYS_symlinkat SYS_sync SYS_syncfs
    SYS_sysinfo SYS_tee SYS_tgkill SYS_timer_create SYS_timer_delete SYS_timer_getoverrun
    SYS_timer_gettime SYS_timer_settime SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime
    SYS_times SYS_tkill SYS_truncate SYS_umask SYS_uname SYS_unlinkat SYS_utimensat SYS_vmsplice
    SYS_wait4 SYS_waitid SYS_write SYS_writev
    SYS_close_range SYS_epoll_pwait2 SYS_faccessat2 SYS_futex_waitv SYS_openat2 SYS_pidfd_open
    SYS_pidfd_send_signal SYS_process_mrelease
};

/// Allowed on this processor: the calls that newer tables left out, and its own.
#[cfg(target_arch = "x86_64")]
const HERE: &[c_long] = calls! {
    SYS_access SYS_alarm SYS_arch_prctl SYS_chmod SYS_chown SYS_creat SYS_dup2 SYS_epoll_create
    SYS_epoll_ctl_old SYS_epoll_wait SYS_epoll_wait_old SYS_eventfd SYS_fork SYS_futimesat
    SYS_get_thread_area SYS_getdents SYS_getpgrp SYS_getrlimit SYS_inotify_init SYS_lchown SYS_link
    SYS_lstat SYS_mkdir SYS_mknod SYS_open SYS_pause SYS_pipe SYS_poll SYS_readlink
    SYS_rename SYS_renameat SYS_rmdir SYS_select SYS_set_thread_area SYS_setrlimit SYS_signalfd
    SYS_stat SYS_symlink SYS_sync_file_range SYS_time SYS_unlink SYS_utime SYS_utimes SYS_vfork
};

/// As above, by number, where libc has no name for them: `renameat`, `sync_file_range`,
/// `getrlimit`, `setrlimit` of asm-generic/unistd.h.
#[cfg(target_arch = "aarch64")]
const HERE: &[c_long] = &[38, 84, 163, 164];

/// Allowed; libc has no name for them everywhere. From 424 on all processors share the numbers.
const UNNAMED: &[c_long] = &[
    IO_PGETEVENTS,
    451, // cachestat
    452, // fchmodat2
    453, // map_shadow_stack
    454, // futex_wake
    455, // futex_wait
    456, // futex_requeue
    457, // statmount
    458, // listmount
    462, // mseal
    463, // setxattrat
    464, // getxattrat
    465, // listxattrat
    466, // removexattrat
];

#[cfg(target_arch = "x86_64")]
const IO_PGETEVENTS: c_long = 333;
#[cfg(target_arch = "aarch64")]
const IO_PGETEVENTS: c_long = 292;
