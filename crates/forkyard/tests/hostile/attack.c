/* What hostile programs try, by raw system calls, so that no library hides or repairs anything.
 *
 *     attack GROUP [ARGUMENT...]
 *
 * Most groups print a line a try, `NAME ERRNO`, and `NAME OK` where the kernel let it happen. The
 * test says what is to come. Linux on x86_64 and aarch64; linked statically, so that it runs in
 * any image.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* Numbers that older headers lack; the same on both processors from 424 on. */
enum { OPEN_TREE = 428, MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT, FSPICK, PIDFD_OPEN, CLONE3,
       PIDFD_GETFD = 438, MOUNT_SETATTR = 442, QUOTACTL_FD, IO_URING_SETUP = 425 };

/* Prints what a call made of `name`. */
static long told(const char *name, long result) {
    if (result == -1)
        printf("%s %s\n", name, strerrorname_np(errno));
    else
        printf("%s OK\n", name);
    fflush(stdout);
    return result;
}

#define TRY(name, number, ...) told(name, syscall(number, ##__VA_ARGS__))

static int open_told(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC);
    told(path, fd);
    return fd;
}

/* Opens for writing; where that is granted, writes. */
static void write_told(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    told(path, fd == -1 ? -1 : write(fd, text, strlen(text)));
    if (fd != -1)
        close(fd);
}

static void mounts(void) {
    mkdir("/tmp/m", 0755);
    TRY("tmpfs", SYS_mount, "none", "/tmp/m", "tmpfs", 0, 0);
    TRY("proc", SYS_mount, "none", "/tmp/m", "proc", 0, 0);
    TRY("sysfs", SYS_mount, "none", "/tmp/m", "sysfs", 0, 0);
    TRY("devpts", SYS_mount, "none", "/tmp/m", "devpts", 0, "newinstance");
    TRY("overlay", SYS_mount, "none", "/tmp/m", "overlay", 0, "lowerdir=/:/usr");
    TRY("cgroup", SYS_mount, "none", "/tmp/m", "cgroup", 0, "memory");
    TRY("cgroup2", SYS_mount, "none", "/tmp/m", "cgroup2", 0, 0);
    TRY("debugfs", SYS_mount, "none", "/tmp/m", "debugfs", 0, 0);
    TRY("bpf", SYS_mount, "none", "/tmp/m", "bpf", 0, 0);
    TRY("binfmt_misc", SYS_mount, "none", "/tmp/m", "binfmt_misc", 0, 0);
    TRY("bind", SYS_mount, "/", "/tmp/m", 0, MS_BIND | MS_REC, 0);
    TRY("shared", SYS_mount, 0, "/", 0, MS_SHARED | MS_REC, 0);
    TRY("move", SYS_mount, "/proc", "/tmp/m", 0, MS_MOVE, 0);
}

static void remount(void) {
    TRY("proc/sys", SYS_mount, 0, "/proc/sys", 0, MS_REMOUNT | MS_BIND, 0);
    TRY("proc/sysrq-trigger", SYS_mount, 0, "/proc/sysrq-trigger", 0, MS_REMOUNT | MS_BIND, 0);
    TRY("sys", SYS_mount, 0, "/sys", 0, MS_REMOUNT | MS_BIND, 0);
    TRY("dev", SYS_mount, 0, "/dev", 0, MS_REMOUNT | MS_BIND, 0);
    TRY("tmp", SYS_mount, 0, "/tmp", 0, MS_REMOUNT, "size=100%");
}

static void umounts(void) {
    static const char *places[] = { "/proc/keys", "/proc/timer_list", "/proc/sys", "/proc",
        "/sys/firmware", "/sys", "/dev/pts", "/dev", "/tmp", "/" };
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        TRY(places[i], SYS_umount2, places[i], 0);
        TRY(places[i], SYS_umount2, places[i], MNT_DETACH);
    }
}

static void mount_api(void) {
    struct { unsigned long set, clear, propagation, userns; } attr = { 0, 1, 0, 0 };
    TRY("fsopen", FSOPEN, "tmpfs", 0);
    TRY("fsopen-proc", FSOPEN, "proc", 0);
    TRY("fspick", FSPICK, AT_FDCWD, "/tmp", 0);
    TRY("fsconfig", FSCONFIG, 0, 0, "a", "b", 0);
    TRY("fsmount", FSMOUNT, 0, 0, 0);
    TRY("open_tree", OPEN_TREE, AT_FDCWD, "/", 1 /* OPEN_TREE_CLONE */ | 0x8000);
    TRY("move_mount", MOVE_MOUNT, AT_FDCWD, "/proc", AT_FDCWD, "/tmp", 0);
    TRY("mount_setattr", MOUNT_SETATTR, AT_FDCWD, "/proc/sys", 0, &attr, sizeof attr);
}

static void pivot(void) {
    mkdir("/tmp/new", 0755);
    mkdir("/tmp/new/old", 0755);
    TRY("pivot_root", SYS_pivot_root, "/tmp/new", "/tmp/new/old");
    TRY("pivot_root-dot", SYS_pivot_root, ".", ".");
}

/* Whether `/` is a file system of two directories that are empty, and of one that has nothing but
 * the sandbox's own root in it, none of which can be written: by stat(2), which Landlock lets be. */
static int is_empty_stand(const struct stat *own) {
    static const char *const empty[] = { "/next", "/layers" };
    struct stat found, root;
    struct statvfs system;
    if (stat("/", &found) || found.st_nlink != 5 || statvfs("/", &system))
        return 0;
    if (!(system.f_flag & ST_RDONLY) || system.f_files != 16)
        return 0;
    for (int i = 0; i < 2; i++)
        if (stat(empty[i], &root) || root.st_dev != found.st_dev || root.st_nlink != 2)
            return 0;
    if (stat("/above", &root) || root.st_dev != found.st_dev || root.st_nlink != 3)
        return 0;
    return !stat("/above/root", &root) && root.st_dev == own->st_dev && root.st_ino == own->st_ino
        && mkdir("/made", 0755) && (errno == EROFS || errno == EACCES);
}

/* The classic: a directory descriptor above a second root, then `..` for ever. */
static void chroot_escape(void) {
    struct stat before, after;
    stat("/", &before);
    int top = open("/", O_RDONLY | O_DIRECTORY);
    mkdir("/tmp/jail", 0755);
    told("chroot", chroot("/tmp/jail"));
    told("fchdir", fchdir(top));
    for (int i = 0; i < 64; i++)
        if (chdir(".."))
            break;
    told("chroot-up", chroot("."));
    stat("/", &after);
    printf("root %s\n", before.st_dev == after.st_dev && before.st_ino == after.st_ino
        ? "same" : is_empty_stand(&before) ? "nothing-above" : "ANOTHER");
}

static void nodes(void) {
    static const struct { const char *name; mode_t kind; unsigned major, minor; } tried[] = {
        { "sda", S_IFBLK, 8, 0 }, { "vda", S_IFBLK, 254, 0 }, { "loop0", S_IFBLK, 7, 0 },
        { "mem", S_IFCHR, 1, 1 }, { "kmsg", S_IFCHR, 1, 11 }, { "null", S_IFCHR, 1, 3 },
        { "fuse", S_IFCHR, 10, 229 }, { "tun", S_IFCHR, 10, 200 }, { "kvm", S_IFCHR, 10, 232 },
    };
    static const char *places[] = { "/root", "/tmp", "/dev/shm", "/dev" };
    char path[64];
    for (size_t i = 0; i < sizeof tried / sizeof *tried; i++)
        for (size_t p = 0; p < sizeof places / sizeof *places; p++) {
            snprintf(path, sizeof path, "%s/%s-%d", places[p], tried[i].name, (int)p);
            TRY(path, SYS_mknodat, AT_FDCWD, path, tried[i].kind | 0666,
                makedev(tried[i].major, tried[i].minor));
        }
}

static void namespaces(void) {
    static const struct { const char *name; int flag; } kinds[] = {
        { "user", CLONE_NEWUSER }, { "mnt", CLONE_NEWNS }, { "pid", CLONE_NEWPID },
        { "net", CLONE_NEWNET }, { "ipc", CLONE_NEWIPC }, { "uts", CLONE_NEWUTS },
        { "cgroup", CLONE_NEWCGROUP }, { "time", 0x80 },
    };
    char path[64];
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        printf("unshare-");
        TRY(kinds[i].name, SYS_unshare, kinds[i].flag);
        if (kinds[i].flag != 0x80) {
            long child = syscall(SYS_clone, (long)kinds[i].flag | SIGCHLD, 0, 0, 0, 0);
            if (child == 0)
                _exit(0);
            printf("clone-");
            told(kinds[i].name, child);
        }
        snprintf(path, sizeof path, "/proc/self/ns/%s", kinds[i].name);
        int fd = open(path, O_RDONLY);
        printf("setns-");
        TRY(kinds[i].name, SYS_setns, fd, 0);
        close(fd);
    }
    int self = syscall(PIDFD_OPEN, getpid(), 0);
    TRY("setns-pidfd", SYS_setns, self, CLONE_NEWNS | CLONE_NEWPID);
}

static void clone_three(void) {
    struct { unsigned long flags, pidfd, child_tid, parent_tid, exit_signal, rest[6]; } args = { 0 };
    args.flags = CLONE_NEWUSER | CLONE_NEWNS;
    args.exit_signal = SIGCHLD;
    long child = syscall(CLONE3, &args, sizeof args);
    if (child == 0)
        _exit(0);
    told("clone3", child);
}

static void init_trace(void) {
    TRY("attach", SYS_ptrace, PTRACE_ATTACH, 1, 0, 0);
    TRY("seize", SYS_ptrace, PTRACE_SEIZE, 1, 0, 0);
    char byte;
    struct iovec here = { &byte, 1 }, there = { (void *)0x400000, 1 };
    TRY("process_vm_readv", SYS_process_vm_readv, 1, &here, 1, &there, 1, 0);
    TRY("process_vm_writev", SYS_process_vm_writev, 1, &here, 1, &there, 1, 0);
    TRY("kcmp", SYS_kcmp, 1, getpid(), 0, 0, 0);
    TRY("get_robust_list", SYS_get_robust_list, 1, &(void *){ 0 }, &(size_t){ 0 });
    TRY("move_pages", SYS_move_pages, 1, 1, &(void *){ 0 }, 0, &(int){ 0 }, 0);
    TRY("migrate_pages", SYS_migrate_pages, 1, 0, 0, 0);
    TRY("perf_event_open", SYS_perf_event_open, &(char[128]){ 0 }, 1, -1, -1, 0);
}

static void init_descriptors(void) {
    int init = syscall(PIDFD_OPEN, 1, 0);
    for (int fd = 0; fd < 12; fd++) {
        char name[32];
        snprintf(name, sizeof name, "pidfd_getfd-%d", fd);
        TRY(name, PIDFD_GETFD, init, fd, 0);
    }
}

static void init_files(void) {
    static const char *files[] = { "/proc/1/mem", "/proc/1/environ", "/proc/1/maps",
        "/proc/1/smaps", "/proc/1/pagemap", "/proc/1/auxv", "/proc/1/syscall", "/proc/1/stack",
        "/proc/1/personality", "/proc/1/io", "/proc/1/numa_maps", "/proc/1/fd/0",
        "/proc/1/fdinfo/0", "/proc/1/root/etc/passwd", "/proc/1/cwd/etc/passwd", "/proc/1/exe",
        "/proc/1/map_files", "/proc/1/ns/mnt", "/proc/1/task/1/mem", "/proc/1/fd" };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char byte;
        int fd = open(files[i], O_RDONLY | O_CLOEXEC);
        /* Some open for anyone and refuse to be read. */
        struct stat stat;
        int directory = fd != -1 && !fstat(fd, &stat) && S_ISDIR(stat.st_mode);
        told(files[i], fd == -1 ? -1 : directory ? 0 : read(fd, &byte, 1));
    }
    write_told("/proc/1/mem", "x");
    write_told("/proc/1/clear_refs", "1");
    write_told("/proc/1/setgroups", "deny");
    write_told("/proc/1/uid_map", "0 0 1");
    write_told("/proc/1/coredump_filter", "ff");
}

static void init_limits(void) {
    struct rlimit none = { 0, 0 };
    struct sched_param param = { 0 };
    unsigned long mask = 1;
    TRY("cpu", SYS_prlimit64, 1, RLIMIT_CPU, &none, 0);
    TRY("nofile", SYS_prlimit64, 1, RLIMIT_NOFILE, &none, 0);
    TRY("fsize", SYS_prlimit64, 1, RLIMIT_FSIZE, &none, 0);
    TRY("nproc", SYS_prlimit64, 1, RLIMIT_NPROC, &none, 0);
    TRY("as", SYS_prlimit64, 1, RLIMIT_AS, &none, 0);
    TRY("setpriority", SYS_setpriority, PRIO_PROCESS, 1, 19);
    TRY("sched_setscheduler", SYS_sched_setscheduler, 1, 5 /* SCHED_IDLE */, &param);
    TRY("sched_setaffinity", SYS_sched_setaffinity, 1, sizeof mask, &mask);
    TRY("ioprio_set", SYS_ioprio_set, 1, 1, 3 << 13);
}

static void signals(void) {
    for (int number = 1; number <= 64; number++) {
        syscall(SYS_kill, 1, number);
        syscall(SYS_tgkill, 1, 1, number);
    }
    siginfo_t info = { .si_code = SI_QUEUE };
    int init = syscall(PIDFD_OPEN, 1, 0);
    info.si_signo = SIGKILL;
    syscall(SYS_rt_sigqueueinfo, 1, SIGKILL, &info);
    syscall(424 /* pidfd_send_signal */, init, SIGKILL, 0, 0);
    syscall(424, init, SIGSTOP, 0, 0);
    puts("sent OK");
}

static void kernel_files(void) {
    write_told("/proc/sys/kernel/core_pattern", "|/tmp/x");
    write_told("/proc/sys/kernel/modprobe", "/tmp/x");
    write_told("/proc/sys/kernel/hostname", "owned");
    write_told("/proc/sys/kernel/domainname", "owned");
    write_told("/proc/sys/kernel/ns_last_pid", "100");
    write_told("/proc/sys/kernel/sysrq", "511");
    write_told("/proc/sys/kernel/shm_rmid_forced", "1");
    write_told("/proc/sys/vm/drop_caches", "0");
    write_told("/proc/sys/vm/overcommit_memory", "0");
    write_told("/proc/sys/fs/binfmt_misc/register", ":x:M::x::/tmp/x:");
    write_told("/proc/sys/fs/mqueue/msg_max", "10");
    write_told("/proc/sys/net/ipv4/ip_forward", "1");
    write_told("/proc/sys/user/max_user_namespaces", "9");
    write_told("/proc/sysrq-trigger", "h");
    write_told("/proc/irq/default_smp_affinity", "1");
    write_told("/proc/kcore", "x");
    write_told("/proc/kmsg", "x");
    write_told("/proc/mtrr", "disable=0");
}

static void system_files(void) {
    write_told("/sys/kernel/uevent_helper", "/tmp/x");
    write_told("/sys/kernel/mm/transparent_hugepage/enabled", "always");
    write_told("/sys/power/state", "mem");
    write_told("/sys/class/net/lo/mtu", "100");
    write_told("/sys/module/kernel/parameters/panic", "1");
    write_told("/sys/kernel/kexec_crash_size", "0");
    write_told("/sys/devices/system/cpu/cpu1/online", "0");
}

/* What the kernel knows of the host and must not tell; each must be empty or refused. */
static void masked(void) {
    static const char *files[] = { "/proc/kcore", "/proc/keys", "/proc/timer_list",
        "/proc/sched_debug", "/proc/interrupts", "/proc/kmsg", "/proc/slabinfo",
        "/proc/kpagecount", "/proc/vmallocinfo" };
    char bytes[4096];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        int fd = open(files[i], O_RDONLY | O_NONBLOCK);
        long got = fd == -1 ? 0 : read(fd, bytes, sizeof bytes);
        printf("%s %s\n", files[i], got > 0 ? "TOLD" : "silent");
    }
    static const char *dirs[] = { "/proc/acpi", "/proc/scsi", "/sys/firmware",
        "/sys/devices/virtual/powercap" };
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        int fd = open(dirs[i], O_RDONLY | O_DIRECTORY);
        /* `.` and `..` take 48 bytes. */
        long got = fd == -1 ? 0 : syscall(SYS_getdents64, fd, bytes, sizeof bytes);
        printf("%s %s\n", dirs[i], got > 48 ? "TOLD" : "silent");
    }
}

/* Calls that no guest has business with. Arguments are such that the kernel, were the call let
 * through, would do nothing to the host. */
static void machine(void) {
    TRY("kexec_load", SYS_kexec_load, 0, 0, 0, 0);
    TRY("kexec_file_load", SYS_kexec_file_load, -1, -1, 0, "", 0);
    TRY("init_module", SYS_init_module, "", 0, "");
    TRY("finit_module", SYS_finit_module, -1, "", 0);
    TRY("delete_module", SYS_delete_module, "no_such_module", O_NONBLOCK);
    TRY("reboot", SYS_reboot, 0xfee1dead, 672274793, 0 /* CAD_OFF */, 0);
    TRY("swapon", SYS_swapon, "/root/none", 0);
    TRY("swapoff", SYS_swapoff, "/root/none");
    TRY("acct", SYS_acct, "/root/none");
    TRY("quotactl", SYS_quotactl, 0, 0, 0, 0);
    TRY("quotactl_fd", QUOTACTL_FD, -1, 0, 0, 0);
    TRY("vhangup", SYS_vhangup);
    TRY("sethostname", SYS_sethostname, "owned", 5);
    TRY("setdomainname", SYS_setdomainname, "owned", 5);
#ifdef SYS_iopl
    TRY("iopl", SYS_iopl, 3);
    TRY("ioperm", SYS_ioperm, 0x80, 1, 1);
#endif
    TRY("lookup_dcookie", SYS_lookup_dcookie, 0L, 0, 0L);
    TRY("nfsservctl", SYS_nfsservctl, 0, 0, 0);
}

static void clocks(void) {
    struct timeval when = { 1, 0 };
    struct timespec then = { 1, 0 };
    char timex[256] = { 1 /* ADJ_OFFSET */ };
    TRY("settimeofday", SYS_settimeofday, &when, 0);
    TRY("clock_settime", SYS_clock_settime, CLOCK_REALTIME, &then);
    TRY("adjtimex", SYS_adjtimex, timex);
    TRY("clock_adjtime", SYS_clock_adjtime, CLOCK_REALTIME, timex);
    TRY("alarm-clock", SYS_timerfd_create, 9 /* CLOCK_BOOTTIME_ALARM */, 0);
}

static void observers(void) {
    TRY("bpf", SYS_bpf, 5, &(char[128]){ 0 }, 128);
    TRY("perf_event_open", SYS_perf_event_open, &(char[128]){ 0 }, 0, -1, -1, 0);
    TRY("userfaultfd", SYS_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */);
    TRY("fanotify_init", SYS_fanotify_init, 0, 0);
    TRY("syslog-read", SYS_syslog, 3, &(char[64]){ 0 }, 64);
    TRY("syslog-clear", SYS_syslog, 5, 0, 0);
    TRY("lsm", 460 /* lsm_set_self_attr */, 100, 0, 0, 0);
}

static void rings(void) {
    TRY("io_uring_setup", IO_URING_SETUP, 4, &(char[128]){ 0 });
    TRY("io_uring_enter", IO_URING_SETUP + 1, -1, 0, 0, 0, 0, 0);
    TRY("io_uring_register", IO_URING_SETUP + 2, -1, 0, 0, 0);
    TRY("memfd_secret", 447, 0);
    TRY("io_setup", SYS_io_setup, 1000, &(unsigned long){ 0 });
}

static void keyrings(void) {
    TRY("add_key", SYS_add_key, "user", "fy", "x", 1, -3 /* session */);
    TRY("request_key", SYS_request_key, "user", "fy", 0, -3);
    TRY("join-session", SYS_keyctl, 1, "fy");
    TRY("describe-user", SYS_keyctl, 6, -4, 0, 0);
    TRY("read-session", SYS_keyctl, 11, -3, 0, 0);
    TRY("read-persistent", SYS_keyctl, 22, -1, -3);
}

/* File handles lead to any inode of a file system, whatever is mounted where. */
static void handles(void) {
    struct { unsigned bytes; int type; unsigned char handle[128]; } handle = { 128, 0, { 0 } };
    int mount_id;
    long got = syscall(SYS_name_to_handle_at, AT_FDCWD, "/etc", &handle, &mount_id, 0);
    printf("name_to_handle_at %s\n", got ? "refused" : "named");
    int root = open("/", O_RDONLY | O_DIRECTORY);
    /* ext4's root has inode 2: the guess with which hosts were read out of containers. */
    for (unsigned inode = 1; inode < 100; inode++) {
        handle.bytes = 8;
        handle.type = 1;
        memcpy(handle.handle, &inode, 4);
        memset(handle.handle + 4, 0, 4);
        TRY("open_by_handle_at", SYS_open_by_handle_at, root, &handle, O_RDONLY);
    }
}

static void terminal(void) {
    char byte = 'x';
    TRY("TIOCSTI", SYS_ioctl, 0, TIOCSTI, &byte);
    TRY("TIOCSTI-wide", SYS_ioctl, 0, (1L << 32) | TIOCSTI, &byte);
    TRY("TIOCLINUX", SYS_ioctl, 0, TIOCLINUX, &byte);
    TRY("TIOCCONS", SYS_ioctl, 0, TIOCCONS, 0);
}

static void personalities(void) {
    TRY("ADDR_NO_RANDOMIZE", SYS_personality, 0x0040000);
    TRY("READ_IMPLIES_EXEC", SYS_personality, 0x0400000);
    TRY("MMAP_PAGE_ZERO", SYS_personality, 0x0100000);
}

#ifdef __x86_64__
static long int80(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c)
                     : "memory", "r8", "r9", "r10", "r11");
    if (result < 0 && result > -4096) {
        errno = (int)-result;
        return -1;
    }
    return result;
}
#endif

static void other_modes(void) {
#ifdef __x86_64__
    told("int80-getpid", int80(20, 0, 0, 0));
    told("int80-mount", int80(21, 0, 0, 0));
    told("int80-unshare", int80(310, CLONE_NEWUSER, 0, 0));
    told("x32-getpid", syscall(0x40000000 + 39));
    told("x32-mount", syscall(0x40000000 + 165, 0, 0, 0, 0, 0));
#endif
    TRY("above-all", 4000);
}

static void families(void) {
    static const struct { const char *name; int family, type, protocol; } tried[] = {
        { "vsock", 40, SOCK_STREAM, 0 }, { "alg", 38, SOCK_SEQPACKET, 0 },
        { "can", 29, SOCK_RAW, 1 }, { "tipc", 30, SOCK_SEQPACKET, 0 },
        { "rds", 21, SOCK_SEQPACKET, 0 }, { "bluetooth", 31, SOCK_RAW, 1 },
        { "xdp", 44, SOCK_RAW, 0 }, { "key", 15, SOCK_RAW, 2 }, { "kcm", 41, SOCK_DGRAM, 0 },
        { "smc", 43, SOCK_STREAM, 0 }, { "ax25", 3, SOCK_DGRAM, 0 }, { "pppox", 24, SOCK_DGRAM, 0 },
        { "nl-netfilter", AF_NETLINK, SOCK_RAW, 12 }, { "nl-audit", AF_NETLINK, SOCK_RAW, 9 },
        { "nl-xfrm", AF_NETLINK, SOCK_RAW, 6 }, { "nl-crypto", AF_NETLINK, SOCK_RAW, 21 },
        { "nl-rdma", AF_NETLINK, SOCK_RAW, 20 }, { "nl-connector", AF_NETLINK, SOCK_RAW, 11 },
    };
    for (size_t i = 0; i < sizeof tried / sizeof *tried; i++)
        TRY(tried[i].name, SYS_socket, tried[i].family, tried[i].type, tried[i].protocol);
}

static void raw_sockets(void) {
    TRY("raw-icmp", SYS_socket, AF_INET, SOCK_RAW, IPPROTO_ICMP);
    TRY("raw-tcp", SYS_socket, AF_INET, SOCK_RAW, IPPROTO_TCP);
    TRY("packet", SYS_socket, AF_PACKET, SOCK_RAW, htons(3));
}

/* Names of the interfaces, by packet sockets' own view. */
static void interfaces(void) {
    struct if_nameindex *all = if_nameindex();
    for (struct if_nameindex *one = all; one && one->if_index; one++)
        printf("interface %s\n", one->if_name);
}

static void netlink(void) {
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    struct { struct nlmsghdr header; struct ifinfomsg link; char rest[64]; } message = { 0 };
    message.header.nlmsg_len = NLMSG_LENGTH(sizeof message.link);
    message.header.nlmsg_type = RTM_NEWLINK;
    message.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
    message.link.ifi_index = 1;
    message.link.ifi_change = IFF_UP;
    char reply[1024];
    send(fd, &message, message.header.nlmsg_len, 0);
    recv(fd, reply, sizeof reply, 0);
    struct nlmsgerr *error = NLMSG_DATA((struct nlmsghdr *)reply);
    errno = -error->error;
    told("lo-down", error->error ? -1 : 0);
    struct ifreq request = { 0 };
    strcpy(request.ifr_name, "lo");
    int inet = socket(AF_INET, SOCK_DGRAM, 0);
    told("lo-flags", ioctl(inet, SIOCSIFFLAGS, &request));
    strcpy(request.ifr_name, "dummy0");
    told("add-route", ioctl(inet, SIOCADDRT, &(char[128]){ 0 }));
}

/* unix ADDRESS: connects; a leading @ is an abstract name. */
static void unix_connect(const char *address) {
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    strncpy(un.sun_path, address, sizeof un.sun_path - 1);
    socklen_t length = offsetof(struct sockaddr_un, sun_path) + strlen(address);
    if (*address == '@')
        un.sun_path[0] = 0;
    static const int types[] = { SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM };
    static const char *names[] = { "stream", "seqpacket", "dgram" };
    for (int i = 0; i < 3; i++) {
        int fd = socket(AF_UNIX, types[i] | SOCK_CLOEXEC, 0);
        told(names[i], connect(fd, (struct sockaddr *)&un, length));
        close(fd);
    }
}

/* Gives a file capabilities; in mode 2 they are effective at once, or the program does not run. */
static void file_capability(const char *path, const char *mode) {
    struct vfs_ns_cap_data data = { 0 };
    data.magic_etc = VFS_CAP_REVISION_2 | (*mode == '2' ? VFS_CAP_FLAGS_EFFECTIVE : 0);
    data.data[0].permitted = 1u << CAP_SYS_ADMIN | 1u << CAP_SYS_PTRACE;
    TRY("setxattr", SYS_setxattr, path, "security.capability", &data, XATTR_CAPS_SZ_2, 0);
}

/* Regains nothing: the sets of a new program, and what may be added to them. */
static void capabilities(void) {
    struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct data[2];
    for (int cap = 0; cap < 64; cap++) {
        syscall(SYS_capget, &header, data);
        if (data[cap / 32].permitted >> (cap % 32) & 1)
            continue;
        data[cap / 32].permitted |= 1u << (cap % 32);
        data[cap / 32].effective |= 1u << (cap % 32);
        if (cap > CAP_LAST_CAP)
            break;
        char name[16];
        snprintf(name, sizeof name, "cap-%d", cap);
        TRY(name, SYS_capset, &header, data);
    }
}

/* Tells of every use of what is in a directory, until something is said to it. */
static void watch(const char *path) {
    int watcher = inotify_init1(IN_NONBLOCK);
    told("watch", inotify_add_watch(watcher, path, IN_ALL_EVENTS));
    while (access("/root/enough", F_OK))
        usleep(10000);
    char events[65536];
    long seen = read(watcher, events, sizeof events);
    printf("seen %s\n", seen > 0 ? "SOMETHING" : "nothing");
}

/* Holds a lease on the file and lets no one have it back. */
static void lease(const char *path) {
    signal(SIGIO, SIG_IGN);
    int fd = open(path, O_RDWR | O_CREAT, 0644);
    told("lease", fcntl(fd, F_SETLEASE, F_WRLCK));
    fflush(stdout);
    for (;;)
        pause();
}

/* Stops, or kills, every process that it can see, for this many seconds. */
static void storm(const char *signal, const char *seconds) {
    time_t end = time(0) + atoi(seconds);
    puts("storm OK");
    fflush(stdout);
    while (time(0) < end)
        /* Not itself: kill(2) of -1 leaves out the caller. */
        kill(-1, atoi(signal));
}

/* Sends descriptors that nobody receives, until the kernel takes no more; how many it took. */
static int send_descriptors(void) {
    enum { AT_ONCE = 250 };
    int count = 0, sockets[2], kept = open("/dev/null", O_RDONLY);
    char byte = 0, control[CMSG_SPACE(AT_ONCE * sizeof(int))] = { 0 };
    struct iovec iov = { &byte, 1 };
    struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
                              .msg_controllen = sizeof control };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){ CMSG_LEN(AT_ONCE * sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
    for (int i = 0; i < AT_ONCE; i++)
        ((int *)CMSG_DATA(header))[i] = kept;
    while (!socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets)) {
        while (sendmsg(sockets[0], &message, MSG_DONTWAIT) == 1)
            count += AT_ONCE;
        if (errno != EAGAIN)
            break;
    }
    return count;
}

static void many(const char *what) {
    int count = 0;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (!strcmp(what, "inotify"))
        while (syscall(SYS_inotify_init1, 0) != -1)
            count++;
    else if (!strcmp(what, "pipes"))
        for (int fds[2]; !pipe(fds); count++)
            fcntl(fds[1], F_SETPIPE_SZ, 1 << 20);
    else if (!strcmp(what, "terminals"))
        while (open("/dev/ptmx", O_RDWR | O_NOCTTY) != -1)
            count++;
    else if (!strcmp(what, "sent"))
        count = send_descriptors();
    else if (!strcmp(what, "signals")) {
        sigset_t all;
        sigfillset(&all);
        sigprocmask(SIG_BLOCK, &all, 0);
        while (!sigqueue(getpid(), SIGRTMIN, (union sigval){ 0 }))
            count++;
    }
    printf("%s %d %s\n", what, count, strerrorname_np(errno));
    fflush(stdout);
    pause();
}

/* vfork children that never execute: their parents wait in the kernel. */
static void vforks(void) {
    for (int i = 0; i < 20; i++)
        if (!fork()) {
            if (!vfork())
                for (;;)
                    pause();
            _exit(0);
        }
    /* And children that a tracer holds. */
    for (int i = 0; i < 20; i++) {
        pid_t child = fork();
        if (!child)
            for (;;)
                pause();
        ptrace(PTRACE_SEIZE, child, 0, PTRACE_O_TRACEEXIT);
        ptrace(PTRACE_INTERRUPT, child, 0, 0);
    }
    puts("stuck OK");
    fflush(stdout);
    for (;;)
        pause();
}

static void zombies(int count) {
    int made = 0;
    for (; made < count; made++) {
        pid_t child = fork();
        if (child == -1)
            break;
        if (!child)
            _exit(0);
    }
    printf("zombies %d\n", made);
    fflush(stdout);
    for (;;)
        pause();
}

/* A tree so deep that no path reaches its end. */
static void deep(int levels) {
    int depth = 0;
    char name[200];
    memset(name, 'd', sizeof name - 1);
    name[sizeof name - 1] = 0;
    while (depth < levels && !mkdir(name, 0755) && !chdir(name))
        depth++;
    printf("depth %d\n", depth);
}

int main(int argc, char **argv) {
    static const struct { const char *name; void (*run)(void); } groups[] = {
        { "mounts", mounts }, { "remount", remount }, { "umounts", umounts },
        { "mount_api", mount_api }, { "pivot", pivot }, { "chroot", chroot_escape },
        { "nodes", nodes }, { "namespaces", namespaces }, { "clone3", clone_three },
        { "init_trace", init_trace }, { "init_descriptors", init_descriptors },
        { "init_files", init_files }, { "init_limits", init_limits }, { "signals", signals },
        { "kernel_files", kernel_files }, { "system_files", system_files }, { "masked", masked },
        { "machine", machine }, { "clocks", clocks }, { "observers", observers },
        { "rings", rings }, { "keyrings", keyrings }, { "handles", handles },
        { "terminal", terminal }, { "personalities", personalities },
        { "other_modes", other_modes }, { "families", families }, { "raw_sockets", raw_sockets },
        { "interfaces", interfaces }, { "netlink", netlink }, { "capabilities", capabilities },
        { "vforks", vforks },
    };
    setvbuf(stdout, 0, _IOLBF, 0);
    const char *group = argc > 1 ? argv[1] : "";
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        if (!strcmp(group, groups[i].name)) {
            groups[i].run();
            return 0;
        }
    const char *argument = argc > 2 ? argv[2] : "";
    if (!strcmp(group, "unix")) unix_connect(argument);
    else if (!strcmp(group, "open")) open_told(argument, O_RDWR);
    else if (!strcmp(group, "file_capability")) file_capability(argument, argc > 3 ? argv[3] : "1");
    else if (!strcmp(group, "watch")) watch(argument);
    else if (!strcmp(group, "lease")) lease(argument);
    else if (!strcmp(group, "storm")) storm(argument, argc > 3 ? argv[3] : "1");
    else if (!strcmp(group, "many")) many(argument);
    else if (!strcmp(group, "zombies")) zombies(atoi(argument));
    else if (!strcmp(group, "deep")) deep(atoi(argument));
    else {
        fprintf(stderr, "attack: no group `%s`\n", group);
        return 2;
    }
    return 0;
}
