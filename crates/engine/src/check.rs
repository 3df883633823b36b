//! Checks of requests, before anything is made.

use std::path::Path;

use crate::error::{Error, Result};
use crate::model::{SandboxSpec, Volume};

/// Longest name of a sandbox: it becomes its host name, whose parts end at 63 bytes.
const NAME_MAX: usize = 63;

/// Most volumes of a sandbox: each is a descriptor of one message to init.
const VOLUMES_MAX: usize = 32;

pub(crate) fn spec(spec: &SandboxSpec) -> Result<()> {
    if let Some(given) = &spec.name {
        name(given)?;
    }
    for (key, value) in &spec.env {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid(format!(
                "`{key}` is no name of a variable, or its value has a NUL"
            )));
        }
    }
    if let Some(workdir) = &spec.workdir {
        absolute("workdir", workdir)?;
    }
    if spec.timeout_ms == Some(0) {
        return Err(invalid("timeout of 0: leave it out for none".to_owned()));
    }
    if spec.volumes.len() > VOLUMES_MAX {
        return Err(invalid(format!("{} volumes: at most {VOLUMES_MAX}", spec.volumes.len())));
    }
    spec.volumes.iter().try_for_each(volume)
}

fn volume(volume: &Volume) -> Result<()> {
    absolute("volume target", &volume.target)?;
    absolute("volume source", &volume.source)?;
    if volume.target.split('/').all(|part| part.is_empty() || part == ".") {
        return Err(invalid("volume target `/`: the root cannot be covered".to_owned()));
    }
    if volume.target.split('/').any(|part| part == "..") {
        return Err(invalid(format!("volume target `{}` has a `..`", volume.target)));
    }
    let kernel = ["/proc", "/sys", "/dev"];
    if kernel.iter().any(|dir| Path::new(&volume.target).starts_with(dir)) {
        return Err(invalid(format!("volume target `{}`: the kernel's own", volume.target)));
    }
    std::fs::metadata(&volume.source)
        .map(drop)
        .map_err(Error::io(format!("volume source {}", volume.source)))
        .map_err(|error| invalid(error.to_string()))
}

pub(crate) fn name(name: &str) -> Result<()> {
    let first = |b: u8| b.is_ascii_alphanumeric();
    let rest = |b: u8| first(b) || matches!(b, b'_' | b'.' | b'-');
    let bytes = name.as_bytes();
    let fits = bytes.len() <= NAME_MAX
        && bytes.first().is_some_and(|&b| first(b))
        && bytes.iter().all(|&b| rest(b));
    if fits {
        Ok(())
    } else {
        Err(invalid(format!(
            "name `{name}`: 1 to {NAME_MAX} of a-z, A-Z, 0-9, `_`, `.` and `-`, the first a letter \
             or digit"
        )))
    }
}

pub(crate) fn absolute(what: &str, path: &str) -> Result<()> {
    if path.starts_with('/') && !path.contains('\0') && path.len() < 4096 {
        Ok(())
    } else {
        Err(invalid(format!("{what} `{path}`: must be an absolute path")))
    }
}

fn invalid(message: String) -> Error {
    Error::Invalid(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_hosts() {
        for good in ["a", "A.b-c_9", &"x".repeat(63)] {
            assert!(name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", ".", "a b", "a/b", "ä", &"x".repeat(64)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn volumes_may_not_cover_the_kernels_files_or_the_root() {
        let volume_at = |target: &str| Volume {
            source: "/usr".to_owned(),
            target: target.to_owned(),
            read_only: true,
        };
        assert!(volume(&volume_at("/data/x")).is_ok());
        for bad in ["/", "//.", "/proc/self", "/dev", "/sys", "data", "/a/../proc", ""] {
            assert!(volume(&volume_at(bad)).is_err(), "{bad}");
        }
    }
}
