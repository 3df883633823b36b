//! Options of snapshots, and of what is paused.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use super::JsonOption;

#[derive(Debug, Args)]
pub(crate) struct SnapshotOptions {
    /// Sandbox: id or name
    #[arg(value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: String,
    /// A name that no other snapshot has
    #[arg(value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) name: Option<String>,
    /// Keep what the sandbox wrote, without its processes and their memory
    #[arg(long)]
    pub(crate) files_only: bool,
    /// Do not wait until it has reached the disk
    #[arg(long)]
    pub(crate) no_wait: bool,
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct SnapshotsOptions {
    #[command(subcommand)]
    pub(crate) command: Option<SnapshotsCommand>,
    #[command(flatten)]
    pub(crate) list: SnapshotList,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotsCommand {
    /// List snapshots
    #[command(visible_alias = "list")]
    Ls(SnapshotList),
    /// Remove snapshots
    Rm {
        /// Their ids or names
        #[arg(required = true, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
        names: Vec<String>,
        /// No error for what is not there
        #[arg(short, long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotList {
    /// Print ids only
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

#[derive(Debug, Args)]
pub(crate) struct PauseOptions {
    /// Sandbox: id or name
    #[arg(value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) json: JsonOption,
}
