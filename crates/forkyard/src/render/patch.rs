//! A patch on a screen: with colours, and with control characters that can be seen.

const BOLD: &str = "\x1b[1m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const CYAN: &str = "\x1b[36m";
const PLAIN: &str = "\x1b[0m";

/// What lines begin with that tell about a file.
const HEADERS: [&[u8]; 11] = [
    b"diff --git ",
    b"index ",
    b"--- ",
    b"+++ ",
    b"new file mode ",
    b"deleted file mode ",
    b"old mode ",
    b"new mode ",
    b"similarity index ",
    b"rename from ",
    b"rename to ",
];

/// Turns a patch into what is shown of it, as it comes.
#[derive(Debug)]
pub(crate) struct PatchView {
    coloured: bool,
    people: bool,
    /// The beginning of a line.
    part: Vec<u8>,
    /// How many lines of the old and the new side are to come of what differs.
    left: (u64, u64),
}

impl PatchView {
    /// For `people` what a guest wrote is shown, and not obeyed by their terminals; for programs
    /// it is as it is.
    pub(crate) fn new(coloured: bool, people: bool) -> Self {
        Self { coloured, people, part: Vec::new(), left: (0, 0) }
    }

    /// What is shown of the next bytes, up to the last whole line.
    pub(crate) fn shown(&mut self, bytes: &[u8]) -> Vec<u8> {
        if !self.people && !self.coloured {
            return bytes.to_vec();
        }
        self.part.extend_from_slice(bytes);
        let Some(end) = self.part.iter().rposition(|&byte| byte == b'\n') else {
            return Vec::new();
        };
        let rest = self.part.split_off(end + 1);
        let whole = std::mem::replace(&mut self.part, rest);
        let mut text = Vec::new();
        whole.split_inclusive(|&byte| byte == b'\n').for_each(|line| self.line(line, &mut text));
        text
    }

    /// What is left.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let part = std::mem::take(&mut self.part);
        let mut text = Vec::new();
        if !part.is_empty() {
            self.line(&part, &mut text);
        }
        text
    }

    fn line(&mut self, line: &[u8], to: &mut Vec<u8>) {
        let bare = line.strip_suffix(b"\n").unwrap_or(line);
        let colour = self.colour(bare).filter(|_| self.coloured);
        to.extend_from_slice(colour.unwrap_or_default().as_bytes());
        to.extend_from_slice(seen(bare).as_bytes());
        to.extend_from_slice(colour.map_or("", |_| PLAIN).as_bytes());
        to.extend_from_slice(line.get(bare.len()..).unwrap_or_default());
    }

    fn colour(&mut self, line: &[u8]) -> Option<&'static str> {
        let (old, new) = &mut self.left;
        if *old > 0 || *new > 0 {
            let (takes_old, takes_new, colour) = match line.first() {
                Some(b'-') => (1, 0, Some(RED)),
                Some(b'+') => (0, 1, Some(GREEN)),
                Some(b'\\') => (0, 0, None),
                _ => (1, 1, None),
            };
            *old = old.saturating_sub(takes_old);
            *new = new.saturating_sub(takes_new);
            return colour;
        }
        if let Some(left) = hunk(line) {
            self.left = left;
            return Some(CYAN);
        }
        HEADERS.iter().any(|header| line.starts_with(header)).then_some(BOLD)
    }
}

/// How many lines of either side follow `@@ -1,2 +3,4 @@`.
fn hunk(line: &[u8]) -> Option<(u64, u64)> {
    let line = std::str::from_utf8(line).ok()?;
    let (old, new) = line.strip_prefix("@@ -")?.strip_suffix(" @@")?.split_once(" +")?;
    let count = |span: &str| match span.split_once(',') {
        Some((_, count)) => count.parse().ok(),
        None => Some(1),
    };
    Some((count(old)?, count(new)?))
}

/// A line in which control characters but tabs can be seen.
fn seen(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let parts: Vec<_> = text.split('\t').map(super::visible).collect();
    parts.join("\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &[u8] = b"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n same\n--- was\n\
                           +\tis \x1b[2J\n\\ No newline at end of file\ndiff --git a/y b/y\n";

    #[test]
    fn programs_get_it_as_it_is() {
        let mut view = PatchView::new(false, false);
        assert_eq!([view.shown(PATCH), view.rest()].concat(), PATCH);
    }

    #[test]
    fn people_see_colours_and_nothing_that_a_terminal_obeys() {
        let mut view = PatchView::new(true, true);
        // In pieces of any size.
        let mut text: Vec<u8> = PATCH.chunks(3).flat_map(|piece| view.shown(piece)).collect();
        text.extend(view.rest());
        let text = String::from_utf8(text).unwrap();
        for line in [
            "\x1b[1m--- a/x\x1b[0m\n",
            "\x1b[36m@@ -1,2 +1,2 @@\x1b[0m\n same\n",
            "\x1b[31m--- was\x1b[0m\n",
            "\x1b[32m+\tis \\u{1b}[2J\x1b[0m\n",
            "\n\\ No newline at end of file\n\x1b[1mdiff --git a/y b/y\x1b[0m\n",
        ] {
            assert!(text.contains(line), "{line:?} not in {text:?}");
        }
    }
}
