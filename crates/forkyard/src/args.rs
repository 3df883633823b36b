//! What can be asked on the command line. The doc comments here are the help texts.

mod diff;
mod keys;
mod sandbox;
mod snapshots;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};

pub(crate) use diff::DiffOptions;
pub(crate) use keys::{KeyCommand, ListenOptions};
pub(crate) use sandbox::{CommandOptions, SandboxOptions, StdioOptions, caller_terminal_size};
pub(crate) use snapshots::{
    PauseOptions, SnapshotList, SnapshotOptions, SnapshotsCommand, SnapshotsOptions,
};
pub(crate) use values::Signal;

use crate::error::Error;
use crate::paths::PathOptions;

/// An operating system for AI agents: sandboxes in milliseconds.
#[derive(Debug, Parser)]
#[command(name = "forkyard", version, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) paths: PathOptions,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in a new sandbox, then delete the sandbox
    Run(Box<RunOptions>),
    /// Create a sandbox and print its id
    Create(Box<CreateOptions>),
    /// Run a command in a sandbox
    Exec(ExecOptions),
    /// Open a shell in a sandbox
    Shell(ShellOptions),
    /// List sandboxes
    #[command(visible_alias = "list")]
    Ls(LsOptions),
    /// Show everything about sandboxes
    Inspect(InspectOptions),
    /// Show what happened to a sandbox, or what a command of it wrote
    Logs(LogsOptions),
    /// Show what running sandboxes use
    #[command(alias = "stats")]
    Top(TopOptions),
    /// List the commands of a sandbox
    Ps(PsOptions),
    /// Wait for a command to end and print its exit code
    Wait(WaitOptions),
    /// Connect to a running command's stdin and output
    Attach(AttachOptions),
    /// Send a signal to a command
    Kill(KillOptions),
    /// Copy files between a sandbox and this machine
    Cp(CpOptions),
    /// Show what a sandbox changed in its files
    ///
    /// Everything that differs from its image is shown, also what it was forked with; what is in
    /// /tmp and in volumes is not. On a terminal through $PAGER, or `less`.
    Diff(DiffOptions),
    /// Make running copies of a running sandbox
    Fork(ForkOptions),
    /// Write a running sandbox to disk, to make others from it at any time
    ///
    /// It goes on as soon as it is read; the command waits until all has reached the disk.
    Snapshot(SnapshotOptions),
    /// List and remove snapshots
    Snapshots(SnapshotsOptions),
    /// Write a sandbox to disk and end its processes, until it is resumed
    Pause(PauseOptions),
    /// Have a paused sandbox go on
    Resume(PauseOptions),
    /// Throw sandboxes back to their image: what they wrote is gone, what ran in them has ended
    Reset(Ids),
    /// Remove sandboxes, running ones too
    #[command(aliases = ["delete", "remove"])]
    Rm(RmOptions),
    /// Pull, import, list, show and remove images
    #[command(subcommand)]
    Image(ImageCommand),
    /// See what forkyard does, on this machine, in seconds
    ///
    /// Runs the main job against a server and a store of its own, which are removed afterwards;
    /// nothing is downloaded. The exit code is 1 when a step does not show what it claims.
    Quickstart,
    /// Run the server in the foreground
    ///
    /// There is seldom a need to: other commands start it when none is running.
    Serve(ServeOptions),
    /// Keys of clients that come over TCP: make, list, remove
    #[command(subcommand)]
    Key(KeyCommand),
    /// Shut the server down, if no sandbox runs
    Stop(StopOptions),
    /// Show what this machine offers to sandboxes, what is missing, and how to get it
    Doctor(JsonOption),
    /// Measure what sandboxes cost on this machine, beside other programs if asked
    Bench(crate::bench::BenchOptions),
    /// The process that `bench` measures the kernel's own part with
    #[command(hide = true)]
    BenchFloor(crate::bench::FloorOptions),
    /// Print a completion script for a shell
    ///
    /// For bash: `forkyard completion bash > ~/.local/share/bash-completion/completions/forkyard`
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages
    Man {
        /// Write one page a command here; without it, the main page goes to stdout
        dir: Option<PathBuf>,
    },
    /// Print the version, and that of the server if one is running
    Version(JsonOption),
}

/// Whether a listing is for programs.
#[derive(Debug, Args)]
pub(crate) struct JsonOption {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunOptions {
    /// The image: `host` is this machine's own toolchain
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) image: Option<String>,
    #[command(flatten)]
    pub(crate) sandbox: SandboxOptions,
    #[command(flatten)]
    pub(crate) stdio: StdioOptions,
    /// Run a line of shell instead of a program
    #[arg(short = 'c', long, value_name = "LINE", conflicts_with = "command")]
    pub(crate) shell: Option<String>,
    /// Kill the command after this long: 30s, 5m, 1h30m (exit code 124)
    #[arg(long, value_parser = values::duration)]
    pub(crate) timeout: Option<Duration>,
    /// Put this before the command in place of the image's entrypoint; nothing when empty
    #[arg(long, value_name = "PROGRAM", conflicts_with = "shell")]
    pub(crate) entrypoint: Option<String>,
    /// Keep the sandbox afterwards
    #[arg(long)]
    pub(crate) keep: bool,
    /// Delete the sandbox afterwards (what happens without this, too)
    #[arg(long = "rm", conflicts_with = "keep")]
    pub(crate) _remove: bool,
    /// The command and its arguments, put behind the image's entrypoint where it has one; the
    /// image's own command when there are none
    #[arg(last = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CreateOptions {
    /// The image: `host` is this machine's own toolchain
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) image: Option<String>,
    #[command(flatten)]
    pub(crate) sandbox: SandboxOptions,
    /// Go on from a snapshot in place of an image
    #[arg(long, value_name = "SNAPSHOT", conflicts_with = "image")]
    pub(crate) from: Option<String>,
    /// End the sandbox after this long: 30s, 5m, 1h30m
    #[arg(long, value_parser = values::duration)]
    pub(crate) timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

#[derive(Debug, Args)]
pub(crate) struct ExecOptions {
    /// The sandbox: an id or a name
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) stdio: StdioOptions,
    /// Leave it running and print its number
    #[arg(short, long, conflicts_with = "interactive")]
    pub(crate) detach: bool,
    /// Run the line in the sandbox's session: a shell that stays, with its directory, variables,
    /// functions and jobs, from one line to the next
    #[arg(
        short,
        long,
        conflicts_with_all = ["interactive", "tty", "detach", "env", "env_files", "user", "workdir"]
    )]
    pub(crate) session: bool,
    #[command(flatten)]
    pub(crate) options: CommandOptions,
    /// Kill the command after this long: 30s, 5m, 1h30m (exit code 124)
    #[arg(long, value_parser = values::duration)]
    pub(crate) timeout: Option<Duration>,
    /// Run a line of shell instead of a program
    #[arg(short = 'c', long, value_name = "LINE", conflicts_with = "command")]
    pub(crate) shell: Option<String>,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, required_unless_present = "shell")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ShellOptions {
    /// The sandbox: an id or a name
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) options: CommandOptions,
}

#[derive(Debug, Args)]
pub(crate) struct LsOptions {
    /// Ended sandboxes too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Print ids only
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// One sandbox or more.
#[derive(Debug, Args)]
pub(crate) struct Ids {
    /// Sandboxes: ids or names
    #[arg(required = true, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) ids: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ForkOptions {
    /// Sandbox: id or name
    #[arg(value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: String,
    /// How many copies: 1 to 1000
    #[arg(short = 'n', long, default_value_t = 1, value_name = "N", allow_negative_numbers = true)]
    #[arg(value_parser = values::count)]
    pub(crate) count: u32,
    /// Name of the copy; of several, what their names begin with: NAME-1, NAME-2 ...
    #[arg(long, value_name = "PREFIX")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

#[derive(Debug, Args)]
pub(crate) struct InspectOptions {
    #[command(flatten)]
    pub(crate) ids: Ids,
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// One command of one sandbox.
#[derive(Debug, Args)]
pub(crate) struct CommandPath {
    /// The sandbox: an id or a name
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: String,
    /// The command's number, as `forkyard ps ID` lists it
    pub(crate) command: u32,
}

#[derive(Debug, Args)]
pub(crate) struct LogsOptions {
    /// The sandbox: an id or a name
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: String,
    /// The command's number, as `forkyard ps ID` lists it; without it, the sandbox's journal
    pub(crate) command: Option<u32>,
    /// Go on until the end
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Print the journal as JSON, a line an entry
    #[arg(long, conflicts_with = "command")]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TopOptions {
    /// Seconds from one picture to the next
    #[arg(short = 'd', long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) interval: u64,
    /// End after this many pictures; one when stdout is no terminal
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub(crate) iterations: Option<u64>,
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

#[derive(Debug, Args)]
pub(crate) struct PsOptions {
    /// The sandbox: an id or a name
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: String,
    /// Ended commands too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Print numbers only
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

#[derive(Debug, Args)]
pub(crate) struct WaitOptions {
    #[command(flatten)]
    pub(crate) path: CommandPath,
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

#[derive(Debug, Args)]
pub(crate) struct AttachOptions {
    #[command(flatten)]
    pub(crate) path: CommandPath,
    /// Send stdin
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Leave out this many bytes of its stdout
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    pub(crate) stdout: u64,
    /// Leave out this many bytes of its stderr
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    pub(crate) stderr: u64,
}

#[derive(Debug, Args)]
pub(crate) struct KillOptions {
    #[command(flatten)]
    pub(crate) path: CommandPath,
    /// The signal, by name or number
    #[arg(short, long, default_value = "KILL")]
    pub(crate) signal: Signal,
}

#[derive(Debug, Args)]
pub(crate) struct CpOptions {
    /// Copy what a symbolic link SRC leads to (this machine's side only)
    #[arg(short = 'L', long)]
    pub(crate) follow_link: bool,
    /// A path, ID:PATH, or `-` for a tar archive on stdin
    pub(crate) src: OsString,
    /// A path, ID:PATH, or `-` for a tar archive on stdout
    pub(crate) dst: OsString,
}

#[derive(Debug, Args)]
pub(crate) struct RmOptions {
    #[command(flatten)]
    pub(crate) ids: Ids,
    /// No error for what is not there
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Fetch an image from a registry
    Pull {
        /// As `docker pull` takes it: [REGISTRY/]REPOSITORY[:TAG|@DIGEST]
        #[arg(value_name = "REF", value_parser = NonEmptyStringValueParser::new())]
        reference: String,
        /// OS/ARCH[/VARIANT]; this machine's when absent
        #[arg(long)]
        platform: Option<String>,
        /// Speak plain HTTP to the registry; loopback ones are spoken to so in any case
        #[arg(long)]
        plain_http: bool,
        /// Give up when the registry sends nothing for this long
        #[arg(long, default_value = "30s", value_parser = values::duration)]
        timeout: Duration,
        #[command(flatten)]
        output: FetchOutput,
    },
    /// Make an image of a directory, an OCI layout, or a tar archive
    Import {
        /// A directory, an OCI layout, an archive of `docker save`, or a tar of a root file system
        path: PathBuf,
        /// The image's name; from the archive, else from the path, when absent. Of an archive with
        /// several images, the one of this name is taken
        name: Option<String>,
        /// OS/ARCH[/VARIANT]; this machine's when absent
        #[arg(long)]
        platform: Option<String>,
        #[command(flatten)]
        output: FetchOutput,
    },
    /// List images
    #[command(visible_alias = "list")]
    Ls {
        /// Print names only
        #[arg(short, long, conflicts_with = "json")]
        quiet: bool,
        #[command(flatten)]
        json: JsonOption,
    },
    /// Show everything about images
    Inspect {
        /// Their names
        #[arg(required = true, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
        names: Vec<String>,
        #[command(flatten)]
        json: JsonOption,
    },
    /// Remove what is left of pulls that failed, and whatever else nothing uses
    Prune(JsonOption),
    /// Remove images that no sandbox is made from
    Rm {
        /// Their names
        #[arg(required = true, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
        names: Vec<String>,
        /// No error for what is not there
        #[arg(short, long)]
        force: bool,
    },
}

/// What a pull or an import shows.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct FetchOutput {
    /// No progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print the image as JSON, not its name alone
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ServeOptions {
    /// End after this long without a sandbox or a request, in seconds, or `never`
    #[arg(long, default_value = "never", value_name = "SECONDS|never")]
    pub(crate) idle: values::Idle,
    #[command(flatten)]
    pub(crate) listen: ListenOptions,
    /// Write a byte to this descriptor once requests are taken
    #[arg(long, hide = true, value_name = "N")]
    pub(crate) ready_fd: Option<i32>,
}

#[derive(Debug, Args)]
pub(crate) struct StopOptions {
    /// Remove all sandboxes first, running ones too
    #[arg(short, long, action = ArgAction::SetTrue)]
    pub(crate) force: bool,
    /// Leave running sandboxes as they are; the next server takes them over
    #[arg(short, long, conflicts_with = "force")]
    pub(crate) keep: bool,
}

/// The command line of this process.
pub(crate) fn parse() -> Result<Cli, Error> {
    Cli::try_parse().map_err(Error::CommandLine)
}

/// The definition that completion scripts and manual pages are made from.
pub(crate) fn definition() -> clap::Command {
    Cli::command()
}
