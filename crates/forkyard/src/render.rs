//! Everything that reaches stdout and stderr. Data goes to stdout, talk to stderr.
//!
//! Texts from sandboxes and servers may hold terminal sequences: tables and messages show them
//! escaped. Colour repeats what the words say, and only on a terminal without `NO_COLOR`.

mod human;
mod pager;
mod patch;
mod progress;
mod table;
mod waiting;

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

pub(crate) use human::{Percent, age, cut, duration, now, size, time};
pub(crate) use pager::Paged;
pub(crate) use patch::PatchView;
pub(crate) use progress::ProgressView;
pub(crate) use table::Table;
pub(crate) use waiting::waiting;

use crate::error::Error;

const RED: &str = "\x1b[1;31m";
const CYAN: &str = "\x1b[36m";
const PLAIN: &str = "\x1b[0m";

/// Writes bytes to stdout as they are.
pub(crate) fn data(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(Error::stdout)
}

/// Writes a line to stdout.
pub(crate) fn line(text: &str) -> Result<(), Error> {
    data(format!("{}\n", visible(text)).as_bytes())
}

/// Writes lines to stdout.
pub(crate) fn lines<T: Display>(texts: impl Iterator<Item = T>) -> Result<(), Error> {
    let mut all = String::new();
    for text in texts {
        all.push_str(&visible(&text.to_string()));
        all.push('\n');
    }
    data(all.as_bytes())
}

/// Writes a value to stdout as JSON for people and programs: indented.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<(), Error> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::Protocol(format!("write JSON: {e}")))?;
    text.push(b'\n');
    data(&text)
}

/// Writes a value to stdout as one line of JSON.
pub(crate) fn json_line<T: Serialize>(value: &T) -> Result<(), Error> {
    let mut text =
        serde_json::to_vec(value).map_err(|e| Error::Protocol(format!("write JSON: {e}")))?;
    text.push(b'\n');
    data(&text)
}

/// Says something on stderr; that nobody reads it is no error.
pub(crate) fn note(text: &str) {
    let _ = io::stderr().lock().write_all(format!("{}\n", visible(text)).as_bytes());
}

/// Writes bytes to stderr as they are; that nobody reads them is no error.
pub(crate) fn talk(bytes: &[u8]) {
    let _ = io::stderr().lock().write_all(bytes);
}

/// What clap calls it when nothing follows a command that needs something: its help is the answer.
const NO_ARGUMENTS: clap::error::ErrorKind =
    clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;

/// Tells an error, and what to do about it.
pub(crate) fn error(error: &Error) {
    if error.is_silent() {
        return;
    }
    if let Error::CommandLine(asked) = error
        && (!asked.use_stderr() || asked.kind() == NO_ARGUMENTS)
    {
        let _ = asked.print();
        return;
    }
    let text = error_text(error, coloured(io::stderr().is_terminal()));
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

fn error_text(error: &Error, colour: bool) -> String {
    let (red, cyan, plain) = if colour { (RED, CYAN, PLAIN) } else { ("", "", "") };
    let what = format!("{red}error:{plain} {}\n", one_line(&error.to_string()));
    match error.hint() {
        Some(hint) => format!("{what}{cyan}hint:{plain} {}\n", one_line(&hint)),
        None => what,
    }
}

/// Whether colours may be used for somebody who sits at a `terminal`, or does not.
fn coloured(terminal: bool) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    !refused && !dumb && terminal
}

/// clap's error in our form: what is wrong, and where to look.
pub(crate) fn command_line(error: &clap::Error) -> (String, Option<String>) {
    use clap::error::{ContextKind, ErrorKind};
    let rendered = error.render().to_string();
    let mut paragraphs = rendered.split("\n\n");
    let what = one_line(paragraphs.next().unwrap_or_default());
    let what = what.strip_prefix("error: ").unwrap_or(&what).to_owned();
    let usage = rendered.lines().find_map(|line| line.strip_prefix("Usage: "));
    let command = usage.map_or("forkyard".to_owned(), |usage| {
        let words = usage.split(' ').take_while(|word| !word.starts_with(['[', '<', '-']));
        words.collect::<Vec<_>>().join(" ")
    });
    let tip = rendered.lines().find_map(|line| line.trim_start().strip_prefix("tip: "));
    let stray = error.kind() == ErrorKind::UnknownArgument
        && error.get(ContextKind::SuggestedArg).is_none()
        && usage.is_some_and(|usage| usage.contains("-- ") || usage.contains("[-- "));
    if error.kind() == ErrorKind::MissingSubcommand {
        // clap would list them all, hidden ones too.
        return (format!("`{command}` needs a command"), Some(format!("see `{command} --help`")));
    }
    if error.kind() == ErrorKind::ValueValidation {
        // The reason says what to write.
        return (what, None);
    }
    let hint = match tip {
        _ if stray && command == "forkyard run" && !std::env::args().any(|word| word == "--") => {
            "put the command after `--`: `forkyard run [IMAGE] -- CMD...`".to_owned()
        }
        // What comes behind `--` is a command here, and no value.
        Some(tip) if !tip.starts_with("to pass") => tip.replace('\'', "`"),
        _ => format!("see `{command} --help`"),
    };
    (what, Some(hint))
}

/// A path in any bytes, as git shows it: in quotes where it is not plain.
pub(crate) fn quoted(path: &[u8]) -> String {
    String::from_utf8_lossy(&forkyard_branch::quote(path)).into_owned()
}

/// Text on one line, for a message.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split(['\n', '\r']).map(str::trim).collect();
    visible(words.join(" ").trim()).into_owned()
}

/// Text in which control characters can be seen rather than obeyed.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_control) {
        return Cow::Borrowed(text);
    }
    let escape = |c: char| if is_control(c) { c.escape_default().to_string() } else { c.into() };
    Cow::Owned(text.chars().map(escape).collect())
}

/// Control characters, and those that reorder what follows them.
fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use forkyard_api::routes::ErrorBody;

    fn told(arguments: &[&str]) -> String {
        let error = crate::args::Cli::try_parse_from(arguments).unwrap_err();
        error_text(&Error::CommandLine(error), false)
    }

    #[test]
    fn errors_are_one_line_and_a_hint() {
        let body = ErrorBody {
            code: 404,
            message: "sandbox \x1b[2Jx:\nnot found".into(),
            hint: Some("`forkyard ls`".into()),
            exit_code: None,
        };
        let text = error_text(&Error::Server(body), false);
        assert_eq!(text, "error: sandbox \\u{1b}[2Jx: not found\nhint: `forkyard ls`\n");
    }

    #[test]
    fn colour_is_around_the_words_only() {
        let error = Error::Usage { what: "a".into(), hint: None };
        assert_eq!(error_text(&error, true), "\x1b[1;31merror:\x1b[0m a\n");
    }

    #[test]
    fn mistakes_on_the_command_line_are_told_in_the_same_form() {
        insta::assert_snapshot!(told(&["forkyard", "run", "alpine", "echo"]), @r"
        error: unexpected argument 'echo' found
        hint: put the command after `--`: `forkyard run [IMAGE] -- CMD...`
        ");
        insta::assert_snapshot!(told(&["forkyard", "lss"]), @r"
        error: unrecognized subcommand 'lss'
        hint: some similar subcommands exist: `list`, `logs`, `ls`
        ");
        insta::assert_snapshot!(told(&["forkyard", "--store", "/store"]), @r"
        error: `forkyard` needs a command
        hint: see `forkyard --help`
        ");
        insta::assert_snapshot!(told(&["forkyard", "exec"]), @r"
        error: the following required arguments were not provided: <ID> <COMMAND>...
        hint: see `forkyard exec --help`
        ");
        insta::assert_snapshot!(told(&["forkyard", "create", "--memory", "1q"]), @r"
        error: invalid value '1q' for '--memory <SIZE>': `1q` is no size; write 512m or 2g
        ");
        insta::assert_snapshot!(told(&["forkyard", "ls", "--jsn"]), @r"
        error: unexpected argument '--jsn' found
        hint: a similar argument exists: `--json`
        ");
    }

    #[test]
    fn directions_of_text_cannot_be_turned() {
        assert_eq!(visible("a\u{202e}b\tc"), "a\\u{202e}b\\tc");
    }
}
