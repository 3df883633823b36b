//! Names of entries, taken apart.

use crate::UnpackError;

/// Longest name, in bytes: `PATH_MAX`, beyond which no program in the sandbox could use it.
const MAX_NAME: usize = 4096;

/// Deepest nesting. Removing a tree holds one descriptor a level, and a process has 1,024 by
/// default; real trees stay below 60.
pub(super) const MAX_DEPTH: usize = 256;

/// Longest component, as Linux file systems have it (`NAME_MAX`).
const MAX_PART: usize = 255;

/// A name without `.`, `..` and empty components. It is below the root by its own text; whether
/// links on its way lead elsewhere is the walk's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    parts: Vec<Vec<u8>>,
    whole: Vec<u8>,
}

/// Takes a name apart as `path.Clean` of Go does, which container tools use; a leading `/` is the
/// root of the tree. A name that climbs above the root is refused.
pub(crate) fn clean(raw: &[u8]) -> Result<Name, UnpackError> {
    let refuse = |why: &str| Err(UnpackError::refused(raw, why));
    if raw.len() > MAX_NAME {
        return refuse("its name is longer than 4096 bytes");
    }
    if raw.contains(&0) {
        return refuse("its name holds a NUL byte");
    }
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for part in raw.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                if parts.pop().is_none() {
                    return refuse("its name leads out of the tree");
                }
            }
            _ if part.len() > MAX_PART => {
                return refuse("a part of its name is longer than 255 bytes");
            }
            _ => parts.push(part.to_vec()),
        }
    }
    if parts.len() > MAX_DEPTH {
        return refuse("it is nested deeper than 256 directories");
    }
    Ok(Name { whole: parts.join(&b'/'), parts })
}

impl Name {
    /// The root's name.
    pub(super) fn empty() -> Self {
        Self { parts: Vec::new(), whole: Vec::new() }
    }

    pub(super) fn parts(&self) -> &[Vec<u8>] {
        &self.parts
    }

    /// The components joined.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.whole
    }

    /// The last component; the root has none.
    pub(crate) fn last(&self) -> Option<&[u8]> {
        self.parts.last().map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_and_stay_inside() {
        let cleaned = |raw: &[u8]| clean(raw).map(|name| name.as_bytes().to_vec()).ok();
        assert_eq!(cleaned(b"./a//b/./c/").as_deref(), Some(b"a/b/c".as_slice()));
        assert_eq!(cleaned(b"/etc/passwd").as_deref(), Some(b"etc/passwd".as_slice()));
        assert_eq!(cleaned(b"a/../b").as_deref(), Some(b"b".as_slice()));
        assert_eq!(cleaned(b"./").as_deref(), Some(b"".as_slice()));
        assert_eq!(cleaned(b"..."), Some(b"...".to_vec()));
        for bad in [b"..".as_slice(), b"a/../../b", b"/../x", b"a\0b"] {
            assert_eq!(cleaned(bad), None, "{}", bad.escape_ascii());
        }
        assert_eq!(cleaned(&[b'x'; 256]), None);
        assert_eq!(cleaned(&b"d/".repeat(257)), None);
        assert_eq!(cleaned(&b"./".repeat(3000)), None);
    }
}
