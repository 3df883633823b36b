//! What a sandbox changed.

use std::fmt::Write as _;

use forkyard_engine::model::{Change, ChangeKind, Difference, FileKind, FileName, Lines, Side};

use crate::args::DiffOptions;
use crate::client::{Client, Url};
use crate::error::Error;
use crate::render::{self, Paged, PatchView};

/// Most bytes of a list that are read.
const LIST_MAX: usize = 256 << 20;

/// Widest bar of lines that were added and removed.
const BAR: u64 = 40;

/// `forkyard diff`
pub(super) async fn diff(client: &Client, options: &DiffOptions) -> Result<(), Error> {
    let form = match &options.form {
        form if form.patch => "patch",
        form if form.stat => "stat",
        _ => "list",
    };
    let mut url = Url::sandbox(&options.id).part("diff").query("form", form);
    for path in &options.paths {
        url = url.query("path", path);
    }
    if options.form.patch {
        return patch(client, url).await;
    }
    let changes = list(client, url).await?;
    if options.form.json {
        return render::json(&changes);
    }
    if options.form.name_only {
        let ended = |change: &Change| {
            let name = change.path.bytes();
            let name = if options.null { name } else { render::quoted(&name).into_bytes() };
            [name, vec![if options.null { 0 } else { b'\n' }]].concat()
        };
        return render::data(&changes.iter().flat_map(ended).collect::<Vec<_>>());
    }
    if changes.is_empty() {
        return Ok(());
    }
    let mut paged = Paged::open()?;
    let text = if options.form.stat { stat(&changes) } else { lines(&changes, paged.coloured()) };
    paged.write(text.as_bytes())?;
    paged.finish()
}

async fn list(client: &Client, url: Url) -> Result<Vec<Change>, Error> {
    let mut answer = client.download(url).await?;
    let mut json = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        json.extend_from_slice(&chunk);
        if json.len() > LIST_MAX {
            return Err(Error::Usage {
                what: format!("the list of changes has more than {} MiB", LIST_MAX >> 20),
                hint: Some("name a PATH to see those below it".to_owned()),
            });
        }
    }
    serde_json::from_slice(&json).map_err(|e| Error::Protocol(format!("read its answer: {e}")))
}

async fn patch(client: &Client, url: Url) -> Result<(), Error> {
    let mut answer = client.download(url).await?;
    let Some(first) = answer.chunk().await? else { return Ok(()) };
    let mut paged = Paged::open()?;
    let mut view = PatchView::new(paged.coloured(), paged.is_for_people());
    let mut next = Some(first);
    while let Some(chunk) = next {
        paged.write(&view.shown(&chunk))?;
        next = answer.chunk().await?;
    }
    paged.write(&view.rest())?;
    paged.finish()
}

/// A line for each change.
fn lines(changes: &[Change], colour: bool) -> String {
    let mut text = String::new();
    for change in changes {
        let (letter, code) = match change.change {
            ChangeKind::Added => ('A', "32"),
            ChangeKind::Removed => ('D', "31"),
            ChangeKind::Renamed => ('R', "36"),
            ChangeKind::Changed if change.differs.contains(&Difference::Kind) => ('T', "33"),
            ChangeKind::Changed => ('M', "33"),
        };
        let letter = if colour { format!("\x1b[{code}m{letter}\x1b[0m") } else { letter.into() };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{letter} {}{}", name(change), details(change));
    }
    text
}

/// A change's path, with where it was; of a directory with a slash behind.
fn name(change: &Change) -> String {
    let side = change.new.as_ref().or(change.old.as_ref());
    let is_dir = side.is_some_and(|side| side.kind == FileKind::Directory);
    let path = path(&change.path);
    let slash = if is_dir && path != "/" { "/" } else { "" };
    match &change.from {
        Some(from) => format!("{} -> {path}", self::path(from)),
        None => format!("{path}{slash}"),
    }
}

fn path(name: &FileName) -> String {
    render::quoted(&name.bytes())
}

/// What else than its contents is different.
fn details(change: &Change) -> String {
    let (Some(old), Some(new)) = (&change.old, &change.new) else { return String::new() };
    let kind = |side: &Side| match side.kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "link",
        FileKind::Other => "special file",
    };
    let target = |side: &Side| side.target.as_ref().map(path);
    let all = change.differs.iter().filter_map(|difference| match difference {
        Difference::Kind => Some(format!("{} to {}", kind(old), kind(new))),
        Difference::Contents => Some(format!("to {}", target(new)?)),
        Difference::Mode => Some(format!("mode {:04o} to {:04o}", old.mode, new.mode)),
        Difference::Owner => {
            Some(format!("owner {}:{} to {}:{}", old.uid, old.gid, new.uid, new.gid))
        }
        Difference::Attributes => Some("attributes".to_owned()),
    });
    let all: Vec<String> = all.collect();
    if all.is_empty() { String::new() } else { format!("   ({})", all.join(", ")) }
}

/// A line for each change with its share of lines, and a sum.
fn stat(changes: &[Change]) -> String {
    let files: Vec<&Change> = changes.iter().filter(|change| is_of_files(change)).collect();
    let names: Vec<String> = files.iter().map(|change| name(change)).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let count = |lines: Lines| lines.added + lines.removed;
    let most = files.iter().filter_map(|change| change.lines).map(count).max().unwrap_or(0);
    let digits = most.to_string().len().max(3);
    let scaled = |n: u64| if most <= BAR { n } else { (n * BAR).div_ceil(most) };
    let (mut text, mut added, mut removed) = (String::new(), 0, 0);
    for (change, name) in files.iter().zip(&names) {
        let lines = change.lines.unwrap_or(Lines { added: 0, removed: 0 });
        added += lines.added;
        removed += lines.removed;
        let share = if change.binary || is_large(change) {
            let size = |side: &Option<Side>| side.as_ref().map_or(0, |side| side.size);
            format!("{:>digits$} {} -> {} bytes", "Bin", size(&change.old), size(&change.new))
        } else {
            let bar = |sign: &str, n: u64| sign.repeat(scaled(n) as usize);
            let (plus, minus) = (bar("+", lines.added), bar("-", lines.removed));
            format!("{:>digits$} {plus}{minus}", count(lines))
        };
        let gap = " ".repeat(width - name.chars().count());
        let _ = writeln!(text, " {name}{gap} | {}", share.trim_end());
    }
    let plural = |n: u64| if n == 1 { "" } else { "s" };
    let files = files.len() as u64;
    let _ = writeln!(
        text,
        " {files} file{} changed, {added} insertion{}(+), {removed} deletion{}(-)",
        plural(files),
        plural(added),
        plural(removed)
    );
    text
}

/// Whether it is about more than directories.
fn is_of_files(change: &Change) -> bool {
    let sides = change.old.iter().chain(&change.new);
    sides.into_iter().any(|side| side.kind != FileKind::Directory)
}

/// Whether its contents are different, and nobody says how.
fn is_large(change: &Change) -> bool {
    let is_file = |side: &Option<Side>| side.as_ref().is_some_and(|s| s.kind == FileKind::File);
    let differs = change.change != ChangeKind::Renamed
        && (change.change != ChangeKind::Changed
            || change.differs.contains(&Difference::Contents)
            || change.differs.contains(&Difference::Kind));
    differs && change.lines.is_none() && (is_file(&change.old) || is_file(&change.new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(kind: FileKind, mode: u32, size: u64) -> Side {
        Side { kind, mode, uid: 0, gid: 0, size, target: None }
    }

    fn changes() -> Vec<Change> {
        let file = || Some(side(FileKind::File, 0o644, 9));
        let change = |path: &[u8], change, old, new| Change {
            path: FileName::new(path),
            change,
            from: None,
            differs: Vec::new(),
            old,
            new,
            binary: false,
            lines: None,
        };
        let lines = |added, removed| Some(Lines { added, removed });
        vec![
            Change {
                differs: vec![Difference::Contents, Difference::Mode],
                lines: lines(50, 70),
                ..change(
                    b"/etc/app",
                    ChangeKind::Changed,
                    file(),
                    Some(side(FileKind::File, 0o600, 9)),
                )
            },
            Change { lines: lines(1, 0), ..change(b"/new\nline", ChangeKind::Added, None, file()) },
            change(b"/dir", ChangeKind::Added, None, Some(side(FileKind::Directory, 0o755, 0))),
            Change { binary: true, ..change(b"/\xff", ChangeKind::Removed, file(), None) },
            Change {
                from: Some(FileName::new(b"/here")),
                ..change(b"/there", ChangeKind::Renamed, file(), file())
            },
            Change {
                differs: vec![Difference::Kind],
                lines: lines(0, 4),
                ..change(
                    b"/was",
                    ChangeKind::Changed,
                    file(),
                    Some(side(FileKind::Directory, 0o755, 0)),
                )
            },
        ]
    }

    #[test]
    fn a_change_is_a_letter_a_path_and_what_else_is_different() {
        insta::assert_snapshot!(lines(&changes(), false), @r#"
        M /etc/app   (mode 0644 to 0600)
        A "/new\nline"
        A /dir/
        D "/\377"
        R /here -> /there
        T /was/   (file to directory)
        "#);
    }

    #[test]
    fn lines_are_counted_as_git_counts_them() {
        insta::assert_snapshot!(stat(&changes()), @r#"
         /etc/app        | 120 +++++++++++++++++------------------------
         "/new\nline"    |   1 +
         "/\377"         | Bin 9 -> 0 bytes
         /here -> /there |   0
         /was/           |   4 --
         5 files changed, 51 insertions(+), 74 deletions(-)
        "#);
    }
}
