//! What `forkyard bench` takes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
pub(crate) struct BenchOptions {
    /// How many times each operation is measured
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(3..=100_000))]
    pub(crate) rounds: u32,
    /// Measure bubblewrap and agentdocker-lite in the same run, where they are installed
    #[arg(long)]
    pub(crate) peers: bool,
    /// The image: a directory with a root file system, an archive, or `host`
    #[arg(long, value_name = "DIR|host")]
    pub(crate) image: Option<String>,
    /// Measure this section alone; may be given more than once
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) only: Vec<Section>,
    /// Measure live forks alone: short for `--only fork`
    #[arg(long, conflicts_with = "only")]
    pub(crate) fork: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A part of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Section {
    /// One sandbox from create to delete
    Life,
    /// One command in a fresh sandbox, by the command line
    Once,
    /// 8, 32 and 100 whole lives at the same time
    AtOnce,
    /// Live forks of running programs
    Fork,
    /// 500 sandboxes with idle sessions
    Many,
}

/// What the floor probe takes; see [`super::floor`].
#[derive(Debug, Args)]
pub(crate) struct FloorOptions {
    /// Where its uppers are made
    #[arg(long)]
    pub(crate) directory: PathBuf,
    /// The directory that is the root file system; absent for the host's own
    #[arg(long)]
    pub(crate) root: Option<PathBuf>,
}

impl BenchOptions {
    /// Whether a section is asked for.
    pub(super) fn has(&self, section: Section) -> bool {
        if self.fork {
            return section == Section::Fork;
        }
        self.only.is_empty() || self.only.contains(&section)
    }
}
