//! What of an archive's metadata is kept, and the notes on what is not.

use crate::Ownership;
use crate::text::show;

/// What happens at a symbolic link on the way to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// It is followed as it would be inside the sandbox: `/` is the root of the tree. A relative
    /// link that climbs above the root is refused.
    FollowInside,
    /// The entry is refused.
    Refuse,
}

/// What is unpacked, and so what of an archive's metadata is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// The layer of an image.
    Layer(Ownership),
    /// Files that leave a sandbox into a directory of the host.
    CopyOut,
}

impl Policy {
    pub(super) fn links(self) -> Links {
        match self {
            Self::Layer(_) => Links::FollowInside,
            Self::CopyOut => Links::Refuse,
        }
    }

    /// Whether files are given to the ids that the archive names, and with that whether setuid
    /// bits and file capabilities mean anything.
    pub(super) fn keeps_owners(self) -> bool {
        self == Self::Layer(Ownership::Keep)
    }

    /// Bits that every directory gets. With one id, nobody but the owner can help when the owner
    /// may not enter.
    pub(super) fn directory_floor(self) -> u32 {
        if self == Self::Layer(Ownership::Squash) { 0o700 } else { 0 }
    }

    /// Bits that every file gets.
    pub(super) fn file_floor(self) -> u32 {
        if self == Self::Layer(Ownership::Squash) { 0o600 } else { 0 }
    }

    pub(super) fn keeps_xattrs(self) -> bool {
        self != Self::CopyOut
    }

    /// Whether modes are exact. Otherwise the process's umask applies, and the modes of
    /// directories are set last, as they may forbid writing.
    pub(super) fn exact_modes(self) -> bool {
        self != Self::CopyOut
    }

    /// Whether a file of the archive replaces a directory in its place, and the reverse.
    pub(super) fn replaces_other_kinds(self) -> bool {
        self != Self::CopyOut
    }
}

/// What was left out, each kind once, with a count and the first entry it happened to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes(Vec<Note>);

#[derive(Clone, Debug)]
struct Note {
    what: &'static str,
    first: String,
    count: u64,
}

impl Notes {
    pub(crate) fn add(&mut self, what: &'static str, entry: &[u8]) {
        match self.0.iter_mut().find(|note| note.what == what) {
            Some(note) => note.count += 1,
            None => self.0.push(Note { what, first: show(entry), count: 1 }),
        }
    }

    /// A line for each kind.
    pub(crate) fn lines(&self) -> Vec<String> {
        let line = |Note { what, first, count }: &Note| match count {
            1 => format!("{what}: `{first}`"),
            _ => format!("{what}: `{first}` and {} more", count - 1),
        };
        self.0.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_one_kind_are_counted() {
        let mut notes = Notes::default();
        notes.add("device nodes left out", b"dev/null");
        notes.add("device nodes left out", b"dev/zero");
        notes.add("setuid bits dropped", b"bin/su");
        assert_eq!(
            notes.lines(),
            ["device nodes left out: `dev/null` and 1 more", "setuid bits dropped: `bin/su`"]
        );
    }
}
