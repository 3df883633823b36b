//! Options that several commands share, and what they ask of the API.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::ArgAction;
use clap::Args;
use forkyard_engine::model::{Limits, Net, SandboxSpec, TerminalSize, Volume, Workspace};

use super::values::{self, Variable};
use crate::error::Error;

/// What a new sandbox is like: `run` and `create`.
#[derive(Debug, Args)]
pub(crate) struct SandboxOptions {
    /// A unique name
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    env: EnvOptions,
    /// USER[:GROUP], names or numbers
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory in the sandbox
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,
    /// Limit of memory: 512m, 2g
    #[arg(short, long, value_name = "SIZE", value_parser = values::memory)]
    memory: Option<u64>,
    /// Limit of processor time, in processors: 0.5, 2
    #[arg(long, value_name = "COUNT", value_parser = values::cpus)]
    cpus: Option<f64>,
    /// Limit of processes and threads
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pids: Option<u32>,
    /// Show a directory or file of this machine as it is: SRC:DST[:ro]
    #[arg(short, long = "volume", value_name = "SRC:DST[:ro]", value_parser = values::volume)]
    volumes: Vec<Volume>,
    /// Work on a directory of this machine, by default at /workspace. What is written there stays
    /// in the sandbox (`cow`), is written to the directory at once (`rw`), or refused (`ro`)
    #[arg(short, long, value_name = "DIR[:PATH][:cow|rw|ro]", value_parser = values::workspace)]
    workspace: Option<Workspace>,
    /// The network: `none` is loopback only, `host` is this machine's
    #[arg(long, default_value = "none", value_parser = values::net, value_name = "none|host")]
    net: Net,
    /// Keys and values of your own
    #[arg(long = "label", visible_alias = "metadata", value_name = "K=V", value_parser = values::pair)]
    labels: Vec<(String, String)>,
}

/// How a command in an existing sandbox is started: `exec` and `shell`.
#[derive(Debug, Args)]
pub(crate) struct CommandOptions {
    #[command(flatten)]
    env: EnvOptions,
    /// USER[:GROUP], names or numbers
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Working directory in the sandbox
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
}

/// How a command's stdio is joined to ours: `run` and `exec`.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct StdioOptions {
    /// Send stdin; without this, the command reads nothing
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long, action = ArgAction::SetTrue)]
    pub(crate) tty: bool,
}

#[derive(Debug, Args)]
struct EnvOptions {
    /// Set a variable, or pass one of the caller's by its name alone
    #[arg(short, long = "env", value_name = "K=V|K", value_parser = values::variable)]
    env: Vec<Variable>,
    /// Read variables from a file: a line each, `#` begins a comment
    #[arg(long = "env-file", value_name = "FILE")]
    env_files: Vec<PathBuf>,
}

impl SandboxOptions {
    /// What these options ask for, made from `image`.
    pub(crate) fn spec(self, image: Option<String>) -> Result<SandboxSpec, Error> {
        Ok(SandboxSpec {
            image,
            from: None,
            name: self.name,
            env: self.env.variables()?,
            user: self.user,
            workdir: self.workdir,
            limits: Limits { memory: self.memory, cpus: self.cpus, pids: self.pids },
            timeout_ms: None,
            net: self.net,
            volumes: self.volumes,
            workspace: self.workspace,
            metadata: self.labels.into_iter().collect(),
        })
    }
}

impl CommandOptions {
    /// The variables these options set.
    pub(crate) fn variables(&self) -> Result<BTreeMap<String, String>, Error> {
        self.env.variables()
    }
}

impl StdioOptions {
    /// Refuses a terminal that is to be typed into from what is none: it would wait for ever, as
    /// a terminal has no end of input.
    pub(crate) fn check(self) -> Result<(), Error> {
        use std::io::IsTerminal as _;
        if self.tty && self.interactive && !std::io::stdin().is_terminal() {
            return Err(Error::Usage {
                what: "-it: stdin is no terminal".to_owned(),
                hint: Some("use -i alone to send it, or -t alone".to_owned()),
            });
        }
        Ok(())
    }

    /// The terminal to ask for: of our own's size where we have one.
    pub(crate) fn terminal(self) -> Option<TerminalSize> {
        self.tty.then(caller_terminal_size)
    }
}

impl EnvOptions {
    /// Files first, then `--env`: the later wins.
    fn variables(&self) -> Result<BTreeMap<String, String>, Error> {
        let mut variables = BTreeMap::new();
        for path in &self.env_files {
            let text = std::fs::read_to_string(path)
                .map_err(|source| Error::io(format!("read {}", path.display()), source))?;
            let lines = values::env_file(&text).map_err(|why| Error::Usage {
                what: format!("{}: {why}", path.display()),
                hint: Some("write a variable a line, K=V".to_owned()),
            })?;
            variables.extend(lines.into_iter().filter_map(Variable::resolve));
        }
        variables.extend(self.env.iter().cloned().filter_map(Variable::resolve));
        Ok(variables)
    }
}

/// Our terminal's size, or 24 by 80 where we have none.
pub(crate) fn caller_terminal_size() -> TerminalSize {
    let fallback = TerminalSize { rows: 24, cols: 80 };
    let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
    let size = if stdout.is_terminal() {
        rustix::termios::tcgetwinsize(&stdout)
    } else if stdin.is_terminal() {
        rustix::termios::tcgetwinsize(&stdin)
    } else {
        return fallback;
    };
    match size {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
            TerminalSize { rows: size.ws_row, cols: size.ws_col }
        }
        _ => fallback,
    }
}
