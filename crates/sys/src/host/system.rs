//! What /proc, /sys and /dev say.

use rustix::fs::Access;
use rustix::process::{Resource, getrlimit};

use super::{Feature, Findings, Kernel, read_number, read_text};
use crate::landlock;

/// The oldest kernel that is supported.
const OLDEST: (u32, u32) = (6, 1);

pub(super) fn kernel(found: &mut Findings) -> Kernel {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
    let (major, minor) = (number(), number());
    if (major, minor) >= OLDEST {
        found.present(Feature::KernelVersion, release.clone());
    } else {
        let detail = format!("{release}; {}.{} or newer is needed", OLDEST.0, OLDEST.1);
        found.absent(Feature::KernelVersion, detail, Some("install a newer kernel and reboot"));
    }
    Kernel { major, minor, release }
}

pub(super) fn landlock(found: &mut Findings) -> u32 {
    let remedy = "boot with the kernel parameter lsm=landlock,... (see /sys/kernel/security/lsm)";
    match landlock::abi() {
        Ok(abi @ 2..) => {
            found.present(Feature::Landlock, format!("ABI {abi}"));
            abi
        }
        Ok(abi) => {
            found.absent(Feature::Landlock, format!("ABI {abi}, 2 is needed"), None);
            abi
        }
        Err(error) => {
            found.absent(Feature::Landlock, error.to_string(), Some(remedy));
            0
        }
    }
}

pub(super) fn devices(found: &mut Findings) {
    let nodes = [
        (Feature::Fuse, "/dev/fuse", "modprobe fuse"),
        (Feature::Kvm, "/dev/kvm", "enable virtualisation in the firmware, or for this machine"),
        (Feature::Tun, "/dev/net/tun", "modprobe tun"),
    ];
    for (feature, path, load) in nodes {
        match rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK) {
            Ok(()) => found.present(feature, "readable and writable"),
            Err(rustix::io::Errno::NOENT) => found.absent(feature, "no such device", Some(load)),
            Err(errno) => {
                let user = "ask for membership in the device's group, or a udev rule";
                found.absent(feature, errno.to_string(), Some(user));
            }
        }
    }
}

pub(super) fn limits(found: &mut Findings) {
    let files = getrlimit(Resource::Nofile);
    let detail = format!("{} now, {} at most", shown(files.current), shown(files.maximum));
    let remedy =
        "set LimitNOFILE=1048576 in the service, or `* hard nofile 1048576` in limits.conf";
    threshold(found, Feature::OpenFiles, files.maximum, 4096, &detail, remedy);

    let most = [
        read_number("/proc/sys/kernel/pid_max"),
        read_number("/proc/sys/kernel/threads-max"),
        getrlimit(Resource::Nproc).current,
    ];
    let most = most.into_iter().flatten().min();
    let detail = format!("{} at most", shown(most));
    threshold(found, Feature::Processes, most, 4096, &detail, "sysctl -w kernel.pid_max=4194304");

    let path = "/proc/sys/user/max_user_namespaces";
    if let Some(count) = read_number(path) {
        let remedy = "sysctl -w user.max_user_namespaces=65536";
        let detail = format!("{count} at most");
        threshold(found, Feature::NamespaceCount, Some(count), 256, &detail, remedy);
    } else {
        found.unknown(Feature::NamespaceCount, format!("{path} cannot be read"));
    }

    let path = "/proc/sys/fs/inotify/max_user_instances";
    if let Some(count) = read_number(path) {
        let remedy = "sysctl -w fs.inotify.max_user_instances=1024";
        let detail = format!("{count} instances");
        threshold(found, Feature::Inotify, Some(count), 128, &detail, remedy);
    } else {
        found.unknown(Feature::Inotify, format!("{path} cannot be read"));
    }
}

/// Present if there are `least` or more; no number means no limit.
fn threshold(
    found: &mut Findings,
    feature: Feature,
    number: Option<u64>,
    least: u64,
    detail: &str,
    remedy: &str,
) {
    if number.is_none_or(|number| number >= least) {
        found.present(feature, detail);
    } else {
        found.absent(feature, format!("{detail}; {least} are needed"), Some(remedy));
    }
}

fn shown(limit: Option<u64>) -> String {
    limit.map_or_else(|| "no limit".to_owned(), |limit| limit.to_string())
}

/// The word in brackets of a file such as `always [madvise] never`.
fn chosen(text: &str) -> Option<&str> {
    text.split_once('[')?.1.split_once(']').map(|(word, _)| word)
}

pub(super) fn huge_pages(found: &mut Findings) {
    let path = "/sys/kernel/mm/transparent_hugepage/enabled";
    let text = read_text(path).unwrap_or_default();
    match chosen(&text) {
        Some(word @ ("always" | "madvise")) => found.present(Feature::HugePages, word),
        Some(word) => {
            found.absent(Feature::HugePages, word, Some(&format!("echo madvise > {path}")));
        }
        None => found.absent(Feature::HugePages, "not built into this kernel", None),
    }
}

pub(super) fn clock(found: &mut Findings) {
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    match read_text(path) {
        Some(source) if ["hpet", "acpi_pm", "jiffies", "pit"].contains(&source.as_str()) => {
            let detail = format!("{source}, read by a system call");
            found.absent(Feature::Clock, detail, Some("boot with tsc=reliable if the host allows"));
        }
        Some(source) => found.present(Feature::Clock, source),
        None => found.unknown(Feature::Clock, format!("{path} cannot be read")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_in_brackets_is_the_setting() {
        assert_eq!(chosen("always [madvise] never"), Some("madvise"));
        assert_eq!(chosen("none"), None);
    }
}
