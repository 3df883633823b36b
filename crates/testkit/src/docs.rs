//! The commands that documents show, so that a test can run them.
//!
//! A fence tagged `console` holds commands and what they print:
//!
//! ````text
//! ```console expect
//! $ forkyard exec box -- sh -c 'echo out; exit 3'
//! # exits 3
//! out
//! $ forkyard ls
//! ID  ...  NAME
//! ...
//! ```
//! ````
//!
//! - `$ ` starts a command; lines after it that start with `> ` continue it, as does a line after
//!   one that ends in a backslash.
//! - `# exits N` straight after a command is the code it exits with; 0 is expected otherwise.
//! - What follows is its output. It is compared only where the fence says `expect`: a line `...`
//!   stands for any lines, `...` within a line for any text. stderr counts as output.
//! - A fence tagged `network` besides is run only where the runner is told that there is one, one
//!   tagged `needs=WHAT` only where the host has that: a program, or what else the runner knows.
//!
//! Commands anywhere else escape the test, so they are errors: in fences tagged `sh` and the like
//! (but for lines that [`elsewhere`] knows), and `$ ` lines in fences without a tag or with `text`.

/// A fence of commands, run in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Line of the fence, from 1.
    pub line: usize,
    /// Whether output is compared.
    pub expect: bool,
    /// Whether it needs the network.
    pub network: bool,
    /// What else it needs of the host.
    pub needs: Vec<String>,
    /// Its commands.
    pub steps: Vec<Step>,
}

/// A command and what is said of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Line of the command, from 1.
    pub line: usize,
    /// What the shell is given; may have several lines.
    pub command: String,
    /// The code it exits with.
    pub exit: i32,
    /// The output shown below it.
    pub output: Vec<String>,
}

/// A command that no test would run, or a fence that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct DocError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

/// Commands that are shown to readers and not run from documents, with the reason.
const ELSEWHERE: &[(&str, &str)] = &[
    ("./test", "runs the test that would run it"),
    ("cargo", "building takes minutes; ./test builds, and runs the quickstart by itself"),
    ("git clone", "needs the network, and the clone is where the test runs"),
    ("pip install", "builds the program; ./test runs the package from its source"),
    ("cd forkyard", "belongs to the clone"),
    ("sudo", "changes the machine the test runs on"),
];

/// Tags of fences that hold shell commands and are not run.
const SHELLS: &[&str] = &["sh", "bash", "shell", "zsh", "shell-session", "sh-session"];

/// Why this command is not run here, if it is not.
pub fn elsewhere(command: &str) -> Option<&'static str> {
    let starts = |prefix: &str| {
        command.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    };
    ELSEWHERE.iter().find(|(prefix, _)| starts(prefix)).map(|(_, reason)| *reason)
}

/// The commands of a Markdown text, in order.
pub fn extract(text: &str) -> Result<Vec<Block>, DocError> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line));
    while let Some((line, opening)) = lines.next() {
        let Some(fence) = Fence::open(opening) else { continue };
        let mut body = Vec::new();
        loop {
            match lines.next() {
                Some((_, inside)) if fence.closes(inside) => break,
                Some((at, inside)) => body.push((at, fence.unindent(inside))),
                None => return Err(error(line, "this fence is never closed")),
            }
        }
        match fence.tag() {
            "console" => blocks.push(console(line, &fence.words, &body)?),
            tag if SHELLS.contains(&tag) => refuse_untested(&body)?,
            "" | "text" => refuse_prompts(&body)?,
            _ => {}
        }
    }
    Ok(blocks)
}

/// The opening of a fenced block (`CommonMark` 0.31, 4.5).
struct Fence<'a> {
    indent: usize,
    mark: char,
    length: usize,
    words: Vec<&'a str>,
}

impl<'a> Fence<'a> {
    fn open(line: &'a str) -> Option<Self> {
        let text = line.trim_start_matches(' ');
        let mark = text.chars().next().filter(|mark| matches!(mark, '`' | '~'))?;
        let info = text.trim_start_matches(mark);
        let length = text.len() - info.len();
        // Three backticks with another one behind them are code within a line.
        (length >= 3 && !(mark == '`' && info.contains('`'))).then(|| Self {
            indent: line.len() - text.len(),
            mark,
            length,
            words: info.split_whitespace().collect(),
        })
    }

    fn tag(&self) -> &'a str {
        self.words.first().copied().unwrap_or_default()
    }

    fn closes(&self, line: &str) -> bool {
        let text = line.trim();
        text.len() >= self.length && text.chars().all(|mark| mark == self.mark)
    }

    /// A line of the body without the fence's own indentation.
    fn unindent<'b>(&self, line: &'b str) -> &'b str {
        let spaces = line.len() - line.trim_start_matches(' ').len();
        line.get(spaces.min(self.indent)..).unwrap_or(line)
    }
}

fn error(line: usize, what: impl Into<String>) -> DocError {
    DocError { line, what: what.into() }
}

/// Reads the body of a `console` fence.
fn console(line: usize, words: &[&str], body: &[(usize, &str)]) -> Result<Block, DocError> {
    let mut block = Block { line, ..Block::default() };
    for word in words.iter().skip(1) {
        match (*word, word.strip_prefix("needs=")) {
            ("expect", _) => block.expect = true,
            ("network", _) => block.network = true,
            (_, Some(need)) if !need.is_empty() => block.needs.push(need.to_owned()),
            (other, _) => {
                return Err(error(line, format!("unknown tag `{other}` after `console`")));
            }
        }
    }
    for &(at, text) in body {
        if let Some(command) = text.strip_prefix("$ ") {
            let step = Step { line: at, command: command.to_owned(), ..Step::default() };
            block.steps.push(step);
            continue;
        }
        let Some(step) = block.steps.last_mut() else {
            return Err(error(at, "output before the first `$ ` line"));
        };
        let fresh = step.output.is_empty() && step.exit == 0;
        if fresh && let Some(more) = text.strip_prefix("> ") {
            step.command = format!("{}\n{more}", step.command);
        } else if fresh && step.command.ends_with('\\') {
            step.command = format!("{}\n{text}", step.command);
        } else if fresh && let Some(code) = text.strip_prefix("# exits ") {
            step.exit =
                code.trim().parse().map_err(|_| error(at, format!("`{code}` is no exit code")))?;
        } else {
            step.output.push(text.to_owned());
        }
    }
    if block.steps.is_empty() {
        return Err(error(line, "a console block without a `$ ` line"));
    }
    Ok(block)
}

/// Lines of a shell fence must be known to be run elsewhere.
fn refuse_untested(body: &[(usize, &str)]) -> Result<(), DocError> {
    for &(at, text) in body {
        let command = text.trim();
        if !command.is_empty() && !command.starts_with('#') && elsewhere(command).is_none() {
            return Err(error(
                at,
                format!("`{command}` is not run by any test: use a `console` block"),
            ));
        }
    }
    Ok(())
}

/// Fences that are not commands must not look as if they were.
fn refuse_prompts(body: &[(usize, &str)]) -> Result<(), DocError> {
    match body.iter().find(|(_, text)| text.starts_with("$ ")) {
        Some(&(at, text)) => Err(error(at, format!("`{text}` is outside a `console` block"))),
        None => Ok(()),
    }
}

/// Whether `actual` is what `expected` lines show, with `...` for what may differ. Spaces at the
/// end of a line and empty lines at the end of the text do not count.
pub fn output_matches(expected: &[String], actual: &str) -> bool {
    let expected: Vec<&str> = expected.iter().map(|line| line.trim_end()).collect();
    let actual: Vec<&str> = actual.trim_end().lines().map(str::trim_end).collect();
    let end = expected.iter().rposition(|line| !line.is_empty()).map_or(0, |last| last + 1);
    let any = |line: &&str| *line == "...";
    glob(&expected[..end], &actual, &any, &|wanted, got| {
        let (wanted, got): (Vec<_>, Vec<_>) = (pieces(wanted), got.chars().collect());
        glob(&wanted, &got, &Option::is_none, &|wanted, got| *wanted == Some(*got))
    })
}

/// The characters of a line, each `...` as `None`.
fn pieces(line: &str) -> Vec<Option<char>> {
    let mut pieces = Vec::new();
    for (at, part) in line.split("...").enumerate() {
        if at > 0 {
            pieces.push(None);
        }
        pieces.extend(part.chars().map(Some));
    }
    pieces
}

/// Matches a pattern whose `any` items stand for any run of items, in linear space and without
/// recursion: on a mismatch the last such item takes one more.
fn glob<P, T>(
    pattern: &[P],
    text: &[T],
    any: &impl Fn(&P) -> bool,
    same: &impl Fn(&P, &T) -> bool,
) -> bool {
    let (mut p, mut t, mut back) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(item) if any(item) => {
                back = Some((p, t));
                p += 1;
            }
            Some(item) if same(item, &text[t]) => {
                p += 1;
                t += 1;
            }
            _ => match back {
                Some((at, taken)) => {
                    back = Some((at, taken + 1));
                    p = at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(any)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    fn step(line: usize, command: &str, exit: i32, output: &str) -> Step {
        Step { line, command: command.into(), exit, output: lines(output) }
    }

    #[test]
    fn console_blocks_give_commands_codes_and_output() {
        let text = "# T\n\n```console expect needs=curl\n$ one\nout\n\nmore\n$ two \\\n  --flag\n# exits 3\n\
                    # exits 4\n$ cat <<E\n> in\n> E\n```\n";
        let block = &extract(text).unwrap()[0];
        assert_eq!((block.line, block.expect, block.network), (3, true, false));
        assert_eq!(block.needs, ["curl"]);
        assert_eq!(block.steps[0], step(4, "one", 0, "out\n\nmore"));
        assert_eq!(block.steps[1], step(8, "two \\\n  --flag", 3, "# exits 4"));
        assert_eq!(block.steps[2], step(12, "cat <<E\nin\nE", 0, ""));
        assert_eq!(block.steps.len(), 3);
    }

    #[test]
    fn indented_fences_and_tildes_are_blocks_too() {
        let text =
            "- item\n\n  ~~~console\n  $ one\n    two\n  ~~~\n\n````console\n$ a\n```\n````\n";
        let blocks = extract(text).unwrap();
        assert_eq!(blocks[0].steps, [step(4, "one", 0, "  two")]);
        assert_eq!(blocks[1].steps, [step(9, "a", 0, "```")]);
    }

    #[test]
    fn commands_outside_console_blocks_are_refused() {
        for (text, line) in [
            ("```sh\n# fine\nforkyard ls\n```\n", 3),
            ("```bash\nmake\n```\n", 2),
            ("```\n$ forkyard ls\n```\n", 2),
            ("```text\na\n$ forkyard ls\n```\n", 3),
        ] {
            assert_eq!(extract(text).unwrap_err().line, line, "{text}");
        }
        assert_eq!(extract("```sh\n./test\ncargo run --release -- quickstart\n```\n"), Ok(vec![]));
        assert_eq!(extract("```python\n$ x\n```\n"), Ok(vec![]));
    }

    #[test]
    fn only_whole_words_are_run_elsewhere() {
        assert!(elsewhere("./test --fast").is_some());
        assert!(elsewhere("./test").is_some());
        assert!(elsewhere("./tester").is_none());
        assert!(elsewhere("git push").is_none());
    }

    #[test]
    fn malformed_blocks_are_refused() {
        for text in [
            "```console\n$ a\n",
            "```console\n```\n",
            "```console\nout\n$ a\n```\n",
            "```console loud\n$ a\n```\n",
            "```console needs=\n$ a\n```\n",
            "```console\n$ a\n# exits soon\n```\n",
        ] {
            assert!(extract(text).is_err(), "{text}");
        }
    }

    #[test]
    fn dots_stand_for_text_and_for_lines() {
        let same = |expected: &str, actual: &str| output_matches(&lines(expected), actual);
        assert!(same("a\nb", "a\nb\n\n"));
        assert!(same("", ""));
        assert!(!same("a", "a\nb"));
        assert!(!same("a\nb", "a"));
        assert!(same("id ... up", "id 0123 4 up"));
        assert!(!same("id ... up", "id 0123 down"));
        assert!(same("a\n...\nz", "a\nz"));
        assert!(same("a\n...\nz", "a\nb\nz\nz"));
        assert!(same("...", ""));
        assert!(!same("a\n...\nz", "a\nz\nb"));
        assert!(same("a...b...c", "aXbYbZc"));
        assert!(!same("", "surprise"));
    }
}
