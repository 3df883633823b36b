//! Mounts, device nodes, and the files by which the kernel is told what to do.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;

use forkyard_testkit::image_dir;
use serde_json::json;

use crate::arena::{Guest, check_refused};
use crate::case::cases;

cases! {
    mounting: "mount(2) of proc, sysfs, devpts, tmpfs, overlay, cgroup v1 and v2, debugfs, bpf, \
        binfmt_misc; binding, moving and sharing mounts"
        => "seccomp", |guest| guest.refused("mounts", &["EPERM"]);
    remounting_writable: "remounting /proc/sys, /proc/sysrq-trigger, /sys and /dev writable"
        => "seccomp", |guest| guest.refused("remount", &["EPERM"]);
    uncovering_what_is_masked: "umount2(2) of each mask, of /proc, /sys, /dev and /"
        => "seccomp", |guest| guest.refused("umounts", &["EPERM"]);
    new_mount_calls: "fsopen, fspick, fsconfig, fsmount, open_tree, move_mount, mount_setattr"
        => "seccomp", |guest| guest.refused("mount_api", &["EPERM", "ENOSYS"]);
    pivoting_back: "pivot_root(2) to reach the old root"
        => "seccomp; the old root is detached", |guest| guest.refused("pivot", &["EPERM"]);
    leaving_a_chroot: "chroot(2), which root may, then fchdir(2) and `..` upwards"
        => "mount namespace: above `/` there is an empty, read-only file system, and nothing above \
            that", chroot;
    making_device_nodes: "mknod(2) of disks, /dev/mem, kmsg, fuse, tun, kvm in every directory"
        => "user namespace: `CAP_MKNOD` over the host is needed", nodes;
    device_nodes_of_an_image: "an image whose layer holds a disk and /dev/mem"
        => "devices are left out of layers; overlays of a user namespace open none",
        image_devices;
    device_nodes_of_a_volume: "opening a device node that lies in a volume"
        => "volumes are mounted nodev", volume_devices;
    reading_what_is_masked: "reading kcore, keys, timer_list, interrupts, slabinfo, ACPI tables, \
        firmware, power counters"
        => "masks; files of the host's root", masked;
    writing_to_proc: "core_pattern, modprobe, hostname, sysrq, drop_caches, binfmt_misc, \
        ip_forward, sysrq-trigger, irq and mtrr"
        => "read-only mounts; files of the host's root",
        |guest| guest.refused("kernel_files", &["EROFS", "EACCES", "EPERM", "ENOENT", "EIO"]);
    writing_to_sys: "uevent_helper, huge pages, power state, module parameters, hot-plug"
        => "read-only mount", |guest| guest.refused("system_files", &["EROFS", "EACCES", "ENOENT"]);
    leaving_the_cgroup: "writing to every cgroup.procs, tasks, release_agent, notify_on_release \
        and limit that can be found"
        => "cgroup namespace, read-only mount; cgroup v1 is not mounted", cgroups;
}

fn chroot(guest: &Guest) {
    let attempts = guest.attack(&["chroot"]);
    assert!(attempts.contains(&("root".to_owned(), "nothing-above".to_owned())), "{attempts:?}");
    let out = guest.sh("ls -di / /proc/1/root /../.. 2>&1");
    assert!(!out.contains(crate::arena::CANARY), "{out}");
}

fn nodes(guest: &Guest) {
    // Neither as root, nor where any file may be made.
    check_refused(&guest.attack(&["nodes"]), &["EPERM", "EROFS", "EACCES"]);
}

fn image_devices(guest: &Guest) {
    let server = &guest.arena.server;
    let (dir, file) = (image_dir(), server.dir().join("devices.tar"));
    let mut archive = tar::Builder::new(File::create(&file).expect("an archive"));
    archive.follow_symlinks(false);
    archive.append_dir_all(".", dir.path()).expect("the image's files");
    for (name, kind, major, minor) in [
        ("disk", tar::EntryType::Block, 8, 0),
        ("disk-v", tar::EntryType::Block, 254, 0),
        ("mem", tar::EntryType::Char, 1, 1),
        ("dev/kmsg", tar::EntryType::Char, 1, 11),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o666);
        header.set_device_major(major).expect("a ustar header");
        header.set_device_minor(minor).expect("a ustar header");
        header.set_size(0);
        archive.append_data(&mut header, name, std::io::empty()).expect("a device");
    }
    archive.finish().expect("an archive");
    drop(archive);
    let file = file.to_string_lossy();
    server.ok(&["image", "import", "-q", &*file, "devices"]);
    let other = guest.arena.guest(&json!({ "image": "devices" }));
    for path in ["/disk", "/disk-v", "/mem", "/dev/kmsg"] {
        check_refused(&other.attack(&["open", path]), &["ENOENT", "EACCES", "EPERM"]);
    }
    check_refused(&other.attack(&["nodes"]), &["EPERM", "EROFS", "EACCES"]);
}

fn volume_devices(guest: &Guest) {
    // Every host has this one, and it harms nobody if the wall is missing.
    let volume = json!({ "source": "/dev/null", "target": "/node" });
    let other = guest.arena.guest(&json!({ "volumes": [volume] }));
    check_refused(&other.attack(&["open", "/node"]), &["EACCES"]);
}

fn masked(guest: &Guest) {
    check_refused(&guest.attack(&["masked"]), &["silent"]);
    // With the host's network, /sys is the host's: what is masked in one's own is there too.
    let host = guest.arena.guest(&json!({ "net": "host" }));
    check_refused(&host.attack(&["masked"]), &["silent"]);
}

fn cgroups(guest: &Guest) {
    let out = guest.sh(
        "for f in $(find / -xdev -o -name 'cgroup.*' -o -name tasks -o -name release_agent \
         -o -name notify_on_release -o -name 'memory.max' -o -name memory.limit_in_bytes \
         2>/dev/null | grep -v '^/proc/[0-9]' | grep /sys/fs/cgroup); do \
         (echo $$ >$f) 2>/dev/null && echo WROTE $f; done; \
         grep cgroup /proc/self/mountinfo | grep -v ' ro,' ; echo looked; cat /proc/self/cgroup",
    );
    let (wrote, own) = out.split_once("looked\n").unwrap_or_else(|| panic!("{out}"));
    assert_eq!(wrote, "", "{out}");
    // Its own groups look like roots: no path of the host's hierarchy shows.
    let named: Vec<_> = own.lines().filter(|line| !line.ends_with(":/")).collect();
    assert!(named.iter().all(|line| !line.contains(&guest.id)), "{own}");
    let mode = std::fs::metadata(guest.arena.server.store()).expect("the store").permissions();
    assert_eq!(mode.mode() & 0o077, 0, "others of the host may look into the store");
}
