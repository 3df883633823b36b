//! How the quickstart looks: numbered titles, commands with their time at the right, output.

use std::io::IsTerminal;
use std::time::Duration;

use crate::error::Error;
use crate::render;

/// Columns of a line, when the terminal has as many.
const WIDTH: usize = 88;

/// Before everything but titles.
const INDENT: &str = "    ";

/// Lines of one command's output that are shown; the rest is counted.
const OUTPUT_LINES: usize = 5;

/// Columns of output that are shown.
const OUTPUT_WIDTH: usize = WIDTH - INDENT.len();

/// Writes to stdout, with colour where that is wanted. Colour repeats what the words say.
#[derive(Debug)]
pub(super) struct Screen {
    colour: bool,
}

#[derive(Clone, Copy)]
enum Style {
    Bold,
    Dim,
    Red,
}

impl Screen {
    /// Coloured on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
    pub(super) fn of_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { colour: !refused && !dumb && std::io::stdout().is_terminal() }
    }

    fn styled(&self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Bold => "1",
            Style::Dim => "2",
            Style::Red => "1;31",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A line of talk at the left edge.
    pub(super) fn say(text: &str) -> Result<(), Error> {
        render::data(format!("{text}\n").as_bytes())
    }

    /// The name of a step.
    pub(super) fn title(&self, number: usize, text: &str) -> Result<(), Error> {
        let title = self.styled(Style::Bold, text);
        render::data(format!("\n{number:>2}  {title}\n").as_bytes())
    }

    /// A command as one types it, before it is run.
    pub(super) fn command(&self, line: &str) -> Result<(), Error> {
        let shown = self.styled(Style::Bold, line);
        render::data(format!("{INDENT}{} {shown}", self.styled(Style::Dim, "$")).as_bytes())
    }

    /// What it took, on the same line, and what it printed.
    pub(super) fn result(&self, line: &str, took: Duration, output: &str) -> Result<(), Error> {
        let took = duration(took);
        let used = INDENT.len() + 2 + line.chars().count() + took.chars().count();
        let gap = WIDTH.saturating_sub(used).max(2);
        let mut text = format!("{:gap$}{}\n", "", self.styled(Style::Dim, &took));
        for line in folded(output) {
            text.push_str(INDENT);
            text.push_str(&line);
            text.push('\n');
        }
        render::data(text.as_bytes())
    }

    /// A remark below a command.
    pub(super) fn remark(&self, text: &str) -> Result<(), Error> {
        let remark = self.styled(Style::Dim, &format!("# {text}"));
        render::data(format!("{INDENT}{remark}\n").as_bytes())
    }

    /// A step that did not show what it claims.
    pub(super) fn failure(&self, why: &str) -> Result<(), Error> {
        let word = self.styled(Style::Red, "FAILED:");
        render::data(format!("{INDENT}{word} {}\n", render::visible(why)).as_bytes())
    }

    /// A row of the table of times.
    pub(super) fn row(name: &str, value: Duration) -> Result<(), Error> {
        render::data(format!("{INDENT}{name:<44}{:>10}\n", duration(value)).as_bytes())
    }
}

/// The lines of output that fit, none of them able to steer the terminal.
fn folded(output: &str) -> Vec<String> {
    let lines: Vec<&str> = output.lines().collect();
    // One line more is shown rather than counted.
    let shown = if lines.len() > OUTPUT_LINES + 1 { OUTPUT_LINES - 1 } else { lines.len() };
    let cut = |line: &&str| {
        let line = line.replace('\t', "  ");
        let line = render::visible(&line);
        match line.char_indices().nth(OUTPUT_WIDTH) {
            Some((end, _)) => format!("{}...", line.get(..end).unwrap_or_default()),
            None => line.to_string(),
        }
    };
    let mut folded: Vec<String> = lines.iter().take(shown).map(cut).collect();
    if shown < lines.len() {
        folded.push(format!("... and {} lines more", lines.len() - shown));
    }
    folded
}

/// Three digits at most: `640 µs`, `9.8 ms`, `1.2 s`.
pub(super) fn duration(duration: Duration) -> String {
    let us = duration.as_secs_f64() * 1e6;
    match us {
        us if us < 999.5 => format!("{us:.0} µs"),
        us if us < 9_950.0 => format!("{:.1} ms", us / 1e3),
        us if us < 999_500.0 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.1} s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_unit_that_keeps_them_short() {
        let cases = [(640, "640 µs"), (1_000, "1.0 ms"), (9_949, "9.9 ms"), (41_200, "41 ms")];
        for (us, text) in cases {
            assert_eq!(duration(Duration::from_micros(us)), text);
        }
        assert_eq!(duration(Duration::from_millis(1234)), "1.2 s");
    }

    #[test]
    fn long_output_is_folded_and_cannot_steer_the_terminal() {
        assert_eq!(folded("a\nb\n"), ["a", "b"]);
        let many = "x\n".repeat(32);
        assert_eq!(folded(&many).last().map(String::as_str), Some("... and 28 lines more"));
        assert_eq!(folded("\x1b[2J"), ["\\u{1b}[2J"]);
        assert!(folded(&"y".repeat(500)).iter().all(|line| line.len() < 100));
    }
}
