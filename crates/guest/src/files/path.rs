//! Paths of requests, checked before anything is done with them.

use super::proto::FileError;

/// The kernel's `PATH_MAX` less the NUL.
const PATH_MAX: usize = 4095;

/// The kernel's `NAME_MAX`.
const NAME_MAX: usize = 255;

/// An absolute path without `.` and empty parts. `..` stays: what it means depends on symbolic
/// links, so only the kernel can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestPath {
    absolute: Vec<u8>,
    /// The request's path ended in a slash.
    pub(crate) slash: bool,
}

impl GuestPath {
    /// Checks `raw`, and joins it to `cwd` or, after `~`, to `home`.
    pub(crate) fn new(raw: &[u8], cwd: &[u8], home: &[u8]) -> Result<Self, FileError> {
        let refuse = |why: &str| Err(FileError::refused("resolve", raw, why));
        if raw.is_empty() {
            return refuse("the path is empty");
        }
        if raw.contains(&0) {
            return refuse("the path contains a NUL byte");
        }
        let (base, rest): (&[u8], &[u8]) = match raw {
            [b'/', ..] => (b"", raw),
            [b'~'] => (home, b""),
            [b'~', b'/', rest @ ..] => (home, rest),
            _ => (cwd, raw),
        };
        let mut absolute = Vec::with_capacity(base.len() + rest.len() + 1);
        for part in base.split(|&byte| byte == b'/').chain(rest.split(|&byte| byte == b'/')) {
            if part.len() > NAME_MAX {
                return refuse("a name in the path is longer than 255 bytes");
            }
            if !part.is_empty() && part != b"." {
                absolute.push(b'/');
                absolute.extend_from_slice(part);
            }
        }
        if absolute.is_empty() {
            absolute.push(b'/');
        }
        if absolute.len() > PATH_MAX || raw.len() > PATH_MAX || absolute.contains(&0) {
            return refuse("the path is longer than 4095 bytes");
        }
        Ok(Self { absolute, slash: raw.ends_with(b"/") })
    }

    /// The whole path; begins with a slash and ends in none, unless it is the root directory.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.absolute
    }

    /// The parts, in order.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.absolute.split(|&byte| byte == b'/').filter(|part| !part.is_empty())
    }

    /// The last part; none for the root directory.
    pub(crate) fn last(&self) -> Option<&[u8]> {
        self.parts().last()
    }

    /// The directory that holds the last part, and that part.
    ///
    /// Refused for the root directory and for a path that ends in `..`: neither has a name that
    /// could be made, removed or changed.
    pub(crate) fn split(&self, action: &str) -> Result<(&[u8], &[u8]), FileError> {
        let refuse = |why: &str| Err(FileError::refused(action, &self.absolute, why));
        match self.absolute.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => {
                let (parent, name) = self.absolute.split_at(slash);
                match name {
                    [b'/'] | [] => refuse("that is the root directory"),
                    b"/.." => refuse("the path ends in `..`"),
                    [_, name @ ..] => Ok((if parent.is_empty() { b"/" } else { parent }, name)),
                }
            }
            None => refuse("the path is not absolute"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(raw: &str) -> Result<String, String> {
        GuestPath::new(raw.as_bytes(), b"/work", b"/home/u")
            .map(|path| String::from_utf8_lossy(path.bytes()).into_owned())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn paths_are_joined_and_cleaned_but_dot_dot_stays() {
        for (raw, want) in [
            ("/", "/"),
            ("a", "/work/a"),
            (".", "/work"),
            ("~", "/home/u"),
            ("~/x", "/home/u/x"),
            ("~x", "/work/~x"),
            ("//a/./b//", "/a/b"),
            ("/a/../b", "/a/../b"),
        ] {
            assert_eq!(clean(raw).as_deref(), Ok(want), "{raw}");
        }
    }

    #[test]
    fn malformed_paths_are_refused_with_the_reason() {
        for (raw, why) in [
            (String::new(), "empty"),
            ("a\0b".to_owned(), "NUL"),
            (format!("/{}", "n".repeat(256)), "255"),
            ("/nn".repeat(1400), "4095"),
        ] {
            let error = clean(&raw).err().unwrap_or_default();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_root_and_dot_dot_have_no_name_to_change() {
        for raw in ["/", "/a/..", ".."] {
            let path = GuestPath::new(raw.as_bytes(), b"/", b"/").ok();
            assert!(path.is_some_and(|path| path.split("remove").is_err()), "{raw}");
        }
        let path = GuestPath::new(b"/a", b"/", b"/").ok();
        assert_eq!(
            path.as_ref().and_then(|path| path.split("x").ok()),
            Some((&b"/"[..], &b"a"[..]))
        );
    }
}
