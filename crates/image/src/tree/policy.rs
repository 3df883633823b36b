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

/// What of an archive's metadata is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) links: Links,
    /// Give files to the ids that the archive names.
    pub(crate) owners: bool,
    /// Keep setuid and setgid.
    pub(crate) set_ids: bool,
    /// Bits that every directory gets while it is written and afterwards.
    pub(crate) directory_floor: u32,
    /// Bits that every file gets.
    pub(crate) file_floor: u32,
    /// Keep `user.*`, and `security.capability` where owners are kept.
    pub(crate) xattrs: bool,
    /// Modes are exact; otherwise the process's umask applies, and the modes of directories are
    /// set last, as they may forbid writing.
    pub(crate) exact_modes: bool,
    /// A file or link of the archive replaces a whole directory in its place.
    pub(crate) replace_trees: bool,
}

impl Policy {
    /// For the layer of an image.
    pub(crate) fn layer(ownership: Ownership) -> Self {
        let keep = ownership == Ownership::Keep;
        Self {
            links: Links::FollowInside,
            owners: keep,
            set_ids: keep,
            directory_floor: if keep { 0 } else { 0o700 },
            file_floor: if keep { 0 } else { 0o600 },
            xattrs: true,
            exact_modes: true,
            replace_trees: true,
        }
    }

    /// For files that leave a sandbox into a directory of the host.
    pub(crate) fn copy_out() -> Self {
        Self {
            links: Links::Refuse,
            owners: false,
            set_ids: false,
            directory_floor: 0,
            file_floor: 0,
            xattrs: false,
            exact_modes: false,
            replace_trees: false,
        }
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
