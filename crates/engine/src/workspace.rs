//! A host directory as a layer of a sandbox: what it writes there lies above, and the directory
//! stays as it is.

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use forkyard_guest::proto::{MountSource, Overlay, VolumeMount, WORKSPACE};

use crate::check;
use crate::error::{Error, Result};
use crate::model::{SandboxSpec, Workspace, WorkspaceMode};

/// Where file systems in memory and the kernel's own files are mounted, over what is below.
const COVERED: [&str; 4] = ["/proc", "/sys", "/dev", "/tmp"];

/// Checks the workspace that is asked for, and names its directory as the kernel does.
pub(crate) fn resolve(spec: &mut SandboxSpec, store: &Path) -> Result<()> {
    let Some(workspace) = &mut spec.workspace else { return Ok(()) };
    check::absolute("workspace", &workspace.source)?;
    check::absolute("workspace target", &workspace.target)?;
    check_target(workspace, &spec.volumes.iter().map(|v| v.target.as_str()).collect::<Vec<_>>())?;
    let named = &workspace.source;
    let failed = |error: std::io::Error| invalid(format!("workspace {named}: {error}"));
    let source = std::fs::canonicalize(named).map_err(failed)?;
    if !source.is_dir() {
        return Err(invalid(format!("workspace {named}: not a directory")));
    }
    if workspace.mode == WorkspaceMode::Cow {
        check_source(&source, store)?;
    }
    let text = |path: PathBuf| path.into_os_string().into_string();
    workspace.source =
        text(source).map_err(|_| invalid(format!("workspace {named}: its path is not UTF-8")))?;
    Ok(())
}

fn check_target(workspace: &Workspace, volumes: &[&str]) -> Result<()> {
    let target = &workspace.target;
    let parts = || target.split('/').filter(|part| !matches!(*part, "" | "."));
    let refuse = |why: &str| Err(invalid(format!("workspace target `{target}`: {why}")));
    if parts().next().is_none() {
        return refuse("the root cannot be covered");
    }
    if parts().any(|part| part == "..") {
        return refuse("it has a `..`");
    }
    if COVERED.iter().any(|dir| Path::new(target).starts_with(dir)) {
        return refuse("something else is mounted over it in every sandbox");
    }
    if volumes.iter().any(|volume| Path::new(target).starts_with(volume)) {
        return refuse("a volume would cover it");
    }
    Ok(())
}

/// Refuses what cannot be a layer below an upper that is in the store.
fn check_source(source: &Path, store: &Path) -> Result<()> {
    let shown = source.display();
    let store = std::fs::canonicalize(store).unwrap_or_else(|_| store.to_owned());
    if source == Path::new("/") {
        let why = "it has all of this machine: name the directory that is worked on";
        return Err(invalid(format!("workspace /: {why}")));
    }
    if store.starts_with(source) {
        return Err(invalid(format!(
            "workspace {shown}: the store is in it, {}: name a directory below, or move the store: \
             `--store DIR`",
            store.display()
        )));
    }
    if source.starts_with(&store) {
        return Err(invalid(format!("workspace {shown}: it is in the store")));
    }
    if let Some(mount) = mount_below(source) {
        return Err(invalid(format!(
            "workspace {shown}: {} is mounted below it, and would be missing: unmount it, or name \
             a directory that has no mounts below it",
            mount.display()
        )));
    }
    Ok(())
}

/// Something that is mounted below a directory.
fn mount_below(dir: &Path) -> Option<PathBuf> {
    // What cannot be asked is the kernel's to refuse.
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mounts = mounts.split(|&byte| byte == b'\n').filter_map(mount_point);
    mounts.into_iter().find(|mount| mount != dir && mount.starts_with(dir))
}

/// The mount point of a line of mountinfo, see
/// [proc_pid_mountinfo(5)](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html).
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|&byte| byte == b' ').nth(4)?;
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, behind @ ..] = rest {
        // Spaces and the like are written as their octal number.
        let digits = behind.get(..3).filter(|_| *first == b'\\');
        let number = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = number.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        path.push(escaped.unwrap_or(*first));
        rest = behind.get(if escaped.is_some() { 3 } else { 0 }..).unwrap_or_default();
    }
    Some(std::ffi::OsString::from_vec(path).into())
}

/// Adds a workspace to what a sandbox is made of.
pub(crate) fn add(
    workspace: &Workspace,
    sources: &mut Vec<MountSource>,
    overlays: &mut Vec<Overlay>,
    volumes: &mut Vec<VolumeMount>,
) {
    let is_layer = workspace.mode == WorkspaceMode::Cow;
    let source = sources.len();
    sources.push(MountSource {
        path: workspace.source.clone(),
        read_only: workspace.mode == WorkspaceMode::Ro,
        recursive: !is_layer,
    });
    let target = workspace.target.clone();
    if is_layer {
        let (lowers, name) = (vec![source], WORKSPACE.to_owned());
        overlays.push(Overlay { target, lowers, base: Vec::new(), name });
    } else {
        volumes.push(VolumeMount { source, target });
    }
}

fn invalid(message: String) -> Error {
    Error::Invalid(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_spaces() {
        let line = b"36 35 98:0 / /mnt/two\\040words rw,noatime - ext3 /dev/root rw";
        assert_eq!(mount_point(line).unwrap(), Path::new("/mnt/two words"));
        assert_eq!(mount_point(b"36 35 98:0 / /a\\9 rw").unwrap(), Path::new("/a\\9"));
        assert_eq!(mount_point(b""), None);
    }

    #[test]
    fn what_is_mounted_below_is_found_and_not_what_is_mounted_there() {
        let shm = Path::new("/dev/shm");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        if mounts.contains(" /dev/shm ") {
            assert!(mount_below(Path::new("/dev")).is_some_and(|mount| mount.starts_with("/dev")));
            assert_eq!(mount_below(shm), None);
        }
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(mount_below(dir.path()), None);
    }

    #[test]
    fn a_workspace_covers_neither_the_kernels_files_nor_what_volumes_cover() {
        let at = |target: &str| Workspace {
            source: "/src".to_owned(),
            target: target.to_owned(),
            mode: WorkspaceMode::Cow,
        };
        for good in ["/workspace", "/home/user/x", "/usr/src", "/data/x"] {
            assert!(check_target(&at(good), &["/workspace/cache"]).is_ok(), "{good}");
        }
        for bad in ["/", "//.", "/a/../b", "/proc", "/tmp/x", "/dev/shm", "/data", "/data/x"] {
            assert!(check_target(&at(bad), &["/data"]).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_has_the_store_or_is_in_it_is_no_workspace() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path.canonicalize().unwrap()
        };
        let store = at("data/store");
        let refused = |source: &Path| check_source(source, &store).unwrap_err().to_string();
        assert!(check_source(&at("work"), &store).is_ok());
        assert!(refused(&at("data")).contains("the store is in it"));
        assert!(refused(&at("data/store")).contains("the store is in it"));
        assert!(refused(&at("data/store/x")).contains("it is in the store"));
        assert!(refused(Path::new("/")).contains("all of this machine"));
    }
}
