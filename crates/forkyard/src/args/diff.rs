//! Options of what shows the changes of a sandbox.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

#[derive(Debug, Args)]
pub(crate) struct DiffOptions {
    /// Sandbox: id or name
    #[arg(value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: String,
    /// Show the changes to these paths and to what is below them alone
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    #[command(flatten)]
    pub(crate) form: DiffForms,
    /// End names with a NUL byte, and write them as they are
    #[arg(short = 'z', long, requires = "name_only")]
    pub(crate) null: bool,
}

/// How changes are shown: one of these, or a line each.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct DiffForms {
    /// Count the lines that were added and removed
    #[arg(long)]
    pub(crate) stat: bool,
    /// Show paths alone
    #[arg(long)]
    pub(crate) name_only: bool,
    /// Show a patch in git's form; `git apply` takes it
    #[arg(short, long)]
    pub(crate) patch: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
