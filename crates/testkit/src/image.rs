//! A small image to start sandboxes from, made of what the host has, without the network.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::find_program;

/// Programs of the image where busybox does not bring them all.
const PROGRAMS: &[&str] = &[
    "sh", "cat", "chmod", "cp", "dd", "echo", "env", "false", "head", "id", "kill", "ln", "ls",
    "mkdir", "mknod", "mount", "mv", "ps", "pwd", "readlink", "rm", "rmdir", "sleep", "stat",
    "sync", "tail", "test", "touch", "true", "uname", "wc",
];

/// A directory that holds a root file system; removed when dropped.
#[derive(Debug)]
pub struct ImageDir {
    dir: TempDir,
}

impl ImageDir {
    /// The root file system, for `forkyard image import`.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Puts a file with this text and mode into the image, directories above it included.
    pub fn file(&self, path: &str, text: &str, mode: u32) {
        let file = self.dir.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().unwrap_or(self.path())).expect("make a directory");
        fs::write(&file, text).expect("write a file of the image");
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("set its mode");
    }

    /// Puts a program of the host into `/bin` of the image, with the libraries it is linked to at
    /// their own paths.
    pub fn program(&self, name: &str, source: &Path) {
        self.copy(source, &Path::new("/bin").join(name));
        for library in libraries(source) {
            self.copy(&library, &library);
        }
    }

    /// Copies what `source` leads to, with its permissions.
    fn copy(&self, source: &Path, target: &Path) {
        let target = self.path().join(target.strip_prefix("/").unwrap_or(target));
        fs::create_dir_all(target.parent().unwrap_or(self.path())).expect("make a directory");
        fs::copy(source, &target)
            .unwrap_or_else(|error| panic!("copy {} into the image: {error}", source.display()));
    }
}

/// An image with `/bin/sh`, common programs, `/etc/passwd` with `root` and `user` (1000), and the
/// usual directories: of busybox where it is installed, else of the host's own programs.
pub fn image_dir() -> ImageDir {
    let dir =
        tempfile::Builder::new().prefix("fy-image-").tempdir().expect("a temporary directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("open it for all");
    let image = ImageDir { dir };
    for (path, mode) in [("etc", 0o755), ("proc", 0o555), ("root", 0o700), ("tmp", 0o1777)] {
        let path = image.path().join(path);
        fs::create_dir(&path).expect("make a directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set its mode");
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n";
    image.file("/etc/passwd", passwd, 0o644);
    image.file("/etc/group", "root:x:0:\nuser:x:1000:\n", 0o644);

    if let Some(busybox) = find_program("busybox") {
        image.program("busybox", &busybox);
        for applet in applets(&busybox) {
            // `busybox` is one of its own applets.
            let _ = symlink("busybox", image.path().join("bin").join(applet));
        }
    } else {
        for name in PROGRAMS {
            let source =
                find_program(name).unwrap_or_else(|| panic!("no `{name}` on this host's PATH"));
            image.program(name, &source);
        }
    }
    image
}

fn applets(busybox: &Path) -> Vec<String> {
    let out = Command::new(busybox).arg("--list").output().expect("run busybox --list");
    String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
}

/// What the loader maps for a program, itself included; empty for a static one.
fn libraries(program: &Path) -> BTreeSet<PathBuf> {
    // ldd fails for static programs, which is an answer too.
    let out = Command::new("ldd").arg(program).output().expect("run ldd");
    parse_ldd(&String::from_utf8_lossy(&out.stdout))
}

/// Lines are `NAME => PATH (ADDRESS)`, `PATH (ADDRESS)` for the loader, and `NAME (ADDRESS)` for
/// the vDSO, which is no file.
fn parse_ldd(text: &str) -> BTreeSet<PathBuf> {
    text.lines()
        .filter_map(|line| line.split_ascii_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f01)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f02)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse_ldd(text), expected.iter().map(PathBuf::from).collect());
        assert!(parse_ldd("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn an_image_holds_a_shell_with_all_it_is_linked_to() {
        let image = image_dir();
        let shell = fs::canonicalize(image.path().join("bin/sh")).unwrap();
        assert!(shell.starts_with(fs::canonicalize(image.path()).unwrap()), "{}", shell.display());
        assert_ne!(fs::metadata(&shell).unwrap().permissions().mode() & 0o111, 0);
        for library in libraries(&shell) {
            let inside = image.path().join(library.strip_prefix("/").unwrap());
            assert!(inside.is_file(), "{}", inside.display());
        }
        let path = image.path().to_owned();
        drop(image);
        assert!(!path.exists());
    }
}
