//! Changes in git's form, for `git apply`.
//!
//! See [git-diff(1)](https://git-scm.com/docs/git-diff), "Generating patch text with -p".

use std::fmt::Write as _;
use std::io::Write;
use std::ops::Range;

use imara_diff::{Hunk, InternedInput};
use sha1::{Digest, Sha1};

use crate::binary::write_literal;
use crate::change::{Change, ChangeKind, Kind, Node};
use crate::contents::{Contents, compare};
use crate::error::Result;
use crate::layers::Layers;
use crate::quote::quote;

/// Lines shown around a difference.
const CONTEXT: u32 = 3;

/// Writes changes one after the other.
#[derive(Debug)]
pub struct Patch<'a, W> {
    layers: &'a Layers,
    /// What comes before every path: empty, or ends in a slash.
    prefix: Vec<u8>,
    to: W,
}

impl<'a, W: Write> Patch<'a, W> {
    /// A patch of changes to these layers, whose paths get `prefix` before them.
    pub fn new(layers: &'a Layers, prefix: impl Into<Vec<u8>>, to: W) -> Self {
        Self { layers, prefix: prefix.into(), to }
    }

    /// Writes what git knows of a change: files, links, and whether a file is executable. Contents
    /// that are no text are written whole, those of more than [`CONTENTS_MAX`](crate::CONTENTS_MAX)
    /// bytes are only said to differ.
    ///
    /// # Errors
    /// When something that is there cannot be read, or `to` takes no more.
    pub fn write(&mut self, change: &Change) -> Result<()> {
        let (old, new) = (git_mode(change.old.as_ref()), git_mode(change.new.as_ref()));
        match (old, new) {
            (None, None) => Ok(()),
            // One of another type takes the place of one that is removed.
            (Some(old), Some(new)) if old >> 12 != new >> 12 => {
                self.section(change, Some(old), None)?;
                self.section(change, None, Some(new))
            }
            (old, new) => self.section(change, old, new),
        }
    }

    fn section(&mut self, change: &Change, old: Option<u32>, new: Option<u32>) -> Result<()> {
        let is_rename = matches!(change.kind, ChangeKind::Renamed { .. });
        let same_mode = old.is_none() || new.is_none() || old == new;
        let both = old.is_some() && new.is_some();
        let same_contents = is_rename || both && !change.aspects.contents;
        if both && !is_rename && same_mode && same_contents {
            return Ok(());
        }
        let old_name = self.name(b"a/", change.old_path());
        let new_name = self.name(b"b/", &change.path);
        self.line(&[b"diff --git ", &old_name, b" ", &new_name])?;
        match (old, new) {
            (None, Some(mode)) => writeln!(self.to, "new file mode {mode:06o}")?,
            (Some(mode), None) => writeln!(self.to, "deleted file mode {mode:06o}")?,
            (Some(old), Some(new)) if old != new => {
                writeln!(self.to, "old mode {old:06o}\nnew mode {new:06o}")?;
            }
            _ => {}
        }
        if is_rename {
            let (from, to) = (self.name(b"", change.old_path()), self.name(b"", &change.path));
            self.line(&[b"similarity index 100%"])?;
            self.line(&[b"rename from ", &from])?;
            return self.line(&[b"rename to ", &to]);
        }
        if same_contents {
            return Ok(());
        }
        let nothing = || Ok(Contents::Bytes(Vec::new()));
        let before = old.map_or_else(nothing, |_| change.old_contents(self.layers))?;
        let after = new.map_or_else(nothing, |_| change.new_contents(self.layers))?;
        let mode = old.filter(|_| old == new).map(|mode| format!(" {mode:06o}"));
        let (Contents::Bytes(old_bytes), Contents::Bytes(new_bytes)) = (&before, &after) else {
            let name = |name, side: Option<u32>| if side.is_some() { name } else { DEV_NULL };
            let (a, b) = (name(old_name.as_slice(), old), name(new_name.as_slice(), new));
            return self.line(&[b"Binary files ", a, b" and ", b, b" differ"]);
        };
        let id = |bytes: &[u8], side: Option<u32>| side.map_or("0".repeat(40), |_| blob(bytes));
        let (from, to) = (id(old_bytes, old), id(new_bytes, new));
        writeln!(self.to, "index {from}..{to}{}", mode.unwrap_or_default())?;
        if before.is_binary() || after.is_binary() {
            self.line(&[b"GIT binary patch"])?;
            write_literal(&mut self.to, new_bytes)?;
            return Ok(write_literal(&mut self.to, old_bytes)?);
        }
        let old_name = if old.is_some() { Self::ended(old_name) } else { DEV_NULL.to_vec() };
        let new_name = if new.is_some() { Self::ended(new_name) } else { DEV_NULL.to_vec() };
        self.text((&old_name, old_bytes), (&new_name, new_bytes))
    }

    /// How two texts differ, with lines around.
    fn text(&mut self, old: (&[u8], &[u8]), new: (&[u8], &[u8])) -> Result<()> {
        let input = InternedInput::new(old.1, new.1);
        let diff = compare(&input);
        let mut hunks: Vec<Hunk> = diff.hunks().collect();
        if hunks.is_empty() {
            return Ok(());
        }
        self.line(&[b"--- ", old.0])?;
        self.line(&[b"+++ ", new.0])?;
        let lengths = (input.before.len() as u32, input.after.len() as u32);
        let mut rest = hunks.as_mut_slice();
        while let Some(first) = rest.first() {
            let near = |a: &Hunk, b: &Hunk| b.before.start - a.before.end <= 2 * CONTEXT;
            let count = 1 + rest.windows(2).take_while(|w| near(&w[0], &w[1])).count();
            let last = rest.get(count - 1).unwrap_or(first);
            let lead = first.before.start.min(CONTEXT);
            let trail = (lengths.0 - last.before.end).min(CONTEXT);
            let before = first.before.start - lead..last.before.end + trail;
            let after = first.after.start - lead..last.after.end + trail;
            writeln!(self.to, "@@ -{} +{} @@", span(&before), span(&after))?;
            let mut at = before.start;
            let (group, others) = rest.split_at_mut(count);
            for hunk in group {
                self.lines(b" ", &input, &input.before, at..hunk.before.start)?;
                self.lines(b"-", &input, &input.before, hunk.before.clone())?;
                self.lines(b"+", &input, &input.after, hunk.after.clone())?;
                at = hunk.before.end;
            }
            self.lines(b" ", &input, &input.before, at..before.end)?;
            rest = others;
        }
        Ok(())
    }

    fn lines(
        &mut self,
        sign: &[u8],
        input: &InternedInput<&[u8]>,
        side: &[imara_diff::Token],
        range: Range<u32>,
    ) -> Result<()> {
        let tokens = side.get(range.start as usize..range.end as usize).unwrap_or_default();
        for &token in tokens {
            let line: &[u8] = input.interner[token];
            self.to.write_all(sign)?;
            self.to.write_all(line)?;
            if !line.ends_with(b"\n") {
                self.to.write_all(b"\n\\ No newline at end of file\n")?;
            }
        }
        Ok(())
    }

    fn name(&self, side: &[u8], path: &[u8]) -> Vec<u8> {
        quote(&[side, &self.prefix, path].concat()).into_owned()
    }

    /// A name at the end of a line: where it has spaces, a tab says that it ends there.
    fn ended(mut name: Vec<u8>) -> Vec<u8> {
        if name.contains(&b' ') {
            name.push(b'\t');
        }
        name
    }

    fn line(&mut self, parts: &[&[u8]]) -> Result<()> {
        for part in parts {
            self.to.write_all(part)?;
        }
        Ok(self.to.write_all(b"\n")?)
    }
}

const DEV_NULL: &[u8] = b"/dev/null";

/// What git knows of a file's mode; nothing of what it does not keep.
fn git_mode(node: Option<&Node>) -> Option<u32> {
    let node = node?;
    match node.kind {
        Kind::File if node.mode & 0o100 != 0 => Some(0o100_755),
        Kind::File => Some(0o100_644),
        Kind::Symlink => Some(0o120_000),
        Kind::Directory | Kind::Other => None,
    }
}

/// What git calls contents by.
fn blob(contents: &[u8]) -> String {
    let mut sum = Sha1::new();
    sum.update(format!("blob {}\0", contents.len()));
    sum.update(contents);
    let mut id = String::new();
    for byte in sum.finalize() {
        // Writing to a string cannot fail.
        let _ = write!(id, "{byte:02x}");
    }
    id
}

/// Lines from 1 on; of no lines, the one before.
fn span(range: &Range<u32>) -> String {
    match range.end - range.start {
        0 => format!("{},0", range.start),
        1 => format!("{}", range.start + 1),
        count => format!("{},{count}", range.start + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_called_what_git_calls_them() {
        assert_eq!(blob(b""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(blob(b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
    }

    #[test]
    fn spans_are_counted_as_in_a_unified_diff() {
        assert_eq!([span(&(0..0)), span(&(2..3)), span(&(2..5))], ["0,0", "3", "3,3"]);
    }
}
