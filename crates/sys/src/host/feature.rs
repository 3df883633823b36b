//! The features that the project uses, and what the lack of each costs.

use serde::Serialize;

/// What belongs together in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// The kernel and its calls.
    Kernel,
    /// Ids and namespaces.
    Namespaces,
    /// File systems and the store.
    Files,
    /// What keeps a guest in.
    Confinement,
    /// What limits and meters a guest.
    Resources,
    /// What live fork uses.
    Fork,
    /// Devices and their like.
    Devices,
    /// Limits of this user or host.
    Limits,
}

/// A table of features: name in reports, group, whether sandboxes need it, what its lack costs.
macro_rules! features {
    ($($(#[$doc:meta])* $variant:ident, $name:literal, $group:ident, $required:literal, $cost:literal;)*) => {
        /// One thing that the host has or has not, in the order of reports.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Feature {
            $($(#[$doc])* $variant,)*
        }

        impl Feature {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name in reports.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// Where it belongs.
            pub fn group(self) -> Group {
                match self { $(Self::$variant => Group::$group),* }
            }

            /// Whether no sandbox can be made without it.
            pub fn required(self) -> bool {
                match self { $(Self::$variant => $required),* }
            }

            /// What its lack costs.
            pub fn cost(self) -> &'static str {
                match self { $(Self::$variant => $cost),* }
            }
        }
    };
}

features! {
    /// Linux 6.1 or newer.
    KernelVersion, "kernel", Kernel, true, "older kernels lack calls that everything here uses";
    /// `pidfd_open`(2).
    Pidfd, "pidfd", Kernel, true, "processes cannot be named safely";
    /// openat2(2).
    Openat2, "openat2", Kernel, true, "paths of a guest cannot be resolved safely";
    /// `close_range`(2).
    CloseRange, "close_range", Kernel, true, "commands could inherit descriptors";
    /// `memfd_create`(2).
    Memfd, "memfd", Kernel, true, "large contents cannot travel as descriptors";
    /// A clock source that user space reads without a system call.
    Clock, "clock", Kernel, false, "every timestamp costs microseconds, and figures of bench drift";

    /// A user namespace with a mapped id, and capabilities in it.
    UserNamespace, "user namespace", Namespaces, true, "no sandbox without root's rights outside it";
    /// Ranges in /etc/subuid and /etc/subgid.
    SubordinateIds, "subordinate ids", Namespaces, false, "one id per sandbox: chown, su and package managers that use other users fail inside";
    /// newuidmap(1) and newgidmap(1), able to do their work.
    MapHelpers, "newuidmap, newgidmap", Namespaces, false, "subordinate ids cannot be used";
    /// A mount namespace in it.
    MountNamespace, "mount namespace", Namespaces, true, "no file system of its own";
    /// A pid namespace in it.
    PidNamespace, "pid namespace", Namespaces, true, "guests would see host processes";
    /// A network namespace in it.
    NetNamespace, "network namespace", Namespaces, true, "guests would have the host's network";
    /// An IPC namespace in it.
    IpcNamespace, "ipc namespace", Namespaces, true, "guests would share System V IPC with the host";
    /// A UTS namespace in it.
    UtsNamespace, "uts namespace", Namespaces, true, "no host name of its own";
    /// A cgroup namespace in it.
    CgroupNamespace, "cgroup namespace", Namespaces, true, "guests would see the host's cgroup paths";
    /// A time namespace in it.
    TimeNamespace, "time namespace", Namespaces, false, "monotonic clocks jump in a snapshot restored after a reboot";
    /// A mount of procfs in a new pid namespace.
    ProcMount, "proc mount", Namespaces, true, "no /proc in the sandbox";

    /// overlayfs with `userxattr` in a user namespace, on tmpfs.
    Overlay, "overlay", Files, true, "no private writable copy of an image";
    /// The same with the store's file system as upper layer.
    OverlayOnStore, "overlay on the store", Files, true, "sandboxes cannot keep their files in this store";
    /// An idmapped mount on the store's file system.
    IdmappedMount, "idmapped mount", Files, false, "layers cannot be shared between id ranges, and are unpacked once for each";
    /// Room in the store.
    StoreSpace, "store", Files, false, "images and uppers run out of room";

    /// seccomp filters.
    Seccomp, "seccomp", Confinement, true, "a guest could make any system call";
    /// seccomp user notification.
    SeccompNotify, "seccomp notification", Confinement, false, "calls of a guest cannot be answered by a supervisor";
    /// Landlock, ABI 2 or newer.
    Landlock, "landlock", Confinement, false, "no second wall around commands of the host image";

    /// Some hierarchy of control groups.
    Cgroups, "cgroups", Resources, false, "no limits and no figures of memory, processors and processes";
    /// Control groups that this user may make and fill.
    CgroupWritable, "cgroup delegation", Resources, false, "limits cannot be set: --memory, --cpus and --pids are refused";
    /// `cgroup.kill`.
    CgroupKill, "cgroup.kill", Resources, false, "guests are killed process by process";
    /// `CLONE_INTO_CGROUP` of clone3(2).
    CloneIntoCgroup, "clone into cgroup", Resources, false, "a process is moved after it was started, which takes longer";
    /// Pressure stall information.
    Pressure, "pressure (PSI)", Resources, false, "no early warning before memory runs out";

    /// clone3(2) with chosen pids, in an own user namespace.
    SetTid, "clone3 set_tid", Fork, false, "no live fork: processes would change their pids";
    /// `CAP_CHECKPOINT_RESTORE` or `CAP_SYS_ADMIN` on the host.
    CheckpointRestore, "checkpoint_restore", Fork, false, "mapped files are reopened by path, not through map_files";
    /// The `PAGEMAP_SCAN` ioctl (Linux 6.7).
    PagemapScan, "PAGEMAP_SCAN", Fork, false, "no live fork: pages that hold something are not told";
    /// userfaultfd(2) for this user.
    Userfaultfd, "userfaultfd", Fork, false, "large memory is read while its process is stopped, not before";
    /// `UFFD_FEATURE_WP_ASYNC` (Linux 6.7).
    WriteProtectAsync, "userfaultfd WP_ASYNC", Fork, false, "large memory is read while its process is stopped, not before";
    /// Transparent huge pages that can be asked for.
    HugePages, "huge pages", Fork, false, "forks of large processes take ten times longer";

    /// /dev/fuse.
    Fuse, "/dev/fuse", Devices, false, "no FUSE file systems in sandboxes";
    /// /dev/kvm.
    Kvm, "/dev/kvm", Devices, false, "virtual machines are emulated";
    /// /dev/net/tun.
    Tun, "/dev/net/tun", Devices, false, "no network by tun device";
    /// `io_uring` for this process (guests never have it).
    IoUring, "io_uring", Devices, false, "file copies of the server use plain calls";

    /// Descriptors that a process may open.
    OpenFiles, "open files", Limits, false, "few sandboxes at once: the server holds some descriptors for each";
    /// Processes on the host.
    Processes, "processes", Limits, false, "few sandboxes at once";
    /// User namespaces that this user may make.
    NamespaceCount, "user namespaces", Limits, false, "few sandboxes at once";
    /// inotify instances.
    Inotify, "inotify", Limits, false, "few watchers at once: file watching in sandboxes fails";
}
