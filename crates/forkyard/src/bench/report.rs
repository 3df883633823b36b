//! The figures of a run: as a table, as bars and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::options::BenchOptions;
use super::samples::Summary;
use super::server::Server;
use crate::render::{self, Table};

/// Characters of the longest bar.
const BAR: usize = 40;

/// All that a run found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: &'static str,
    kernel: String,
    processors: usize,
    file_system: String,
    mode: String,
    image: String,
    rounds: u32,
    rows: Vec<Row>,
    /// What was left out, and why.
    notes: Vec<String>,
}

/// Whom a row is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Against {
    /// agentdocker-lite
    AgentDocker,
    /// bubblewrap
    Bubblewrap,
    /// CRIU, as it was measured once.
    Criu,
    /// The same system calls without forkyard.
    Floor,
    /// The first of many.
    First,
    /// A sandbox in which nothing was written.
    Fresh,
}

/// What a row has to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Goal {
    /// The peer takes this many times as long, or more.
    Faster(f64),
    /// At most this many times what the peer takes.
    Within(f64),
    /// At most this value.
    AtMost(f64),
}

/// What the numbers of a row are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Unit {
    Milliseconds,
    Bytes,
}

/// One operation.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    name: String,
    unit: Unit,
    forkyard: Option<Summary>,
    against: Option<Against>,
    peer: Option<Summary>,
    /// How many times faster than the peer, or what share of it, as the goal has it.
    ratio: Option<f64>,
    goal: Option<Goal>,
    /// Absent where there is no goal, or the peer did not take part.
    met: Option<bool>,
}

impl Row {
    /// A row of milliseconds.
    pub(super) fn times(name: impl Into<String>, values: &[f64]) -> Self {
        Self::new(name.into(), Unit::Milliseconds, values)
    }

    /// A row of bytes.
    pub(super) fn bytes(name: impl Into<String>, values: &[f64]) -> Self {
        Self::new(name.into(), Unit::Bytes, values)
    }

    fn new(name: String, unit: Unit, values: &[f64]) -> Self {
        let forkyard = Summary::of(values);
        Self { name, unit, forkyard, against: None, peer: None, ratio: None, goal: None, met: None }
    }

    /// Compares with what a peer took in the same run.
    pub(super) fn peer(mut self, against: Against, values: &[f64]) -> Self {
        self.against = Some(against);
        self.peer = Summary::of(values);
        self.judged()
    }

    /// Sets what has to be reached.
    pub(super) fn goal(mut self, goal: Goal) -> Self {
        self.goal = Some(goal);
        self.judged()
    }

    fn judged(mut self) -> Self {
        let Some(ours) = self.forkyard.map(|ours| ours.median) else { return self };
        let theirs = self.peer.map(|theirs| theirs.median);
        let within = matches!(self.against, Some(Against::Floor | Against::First))
            || matches!(self.goal, Some(Goal::Within(_)));
        self.ratio = theirs.map(|theirs| if within { ours / theirs } else { theirs / ours });
        self.met = match self.goal {
            Some(Goal::Faster(times)) => self.ratio.map(|ratio| ratio >= times),
            Some(Goal::Within(times)) => self.ratio.map(|ratio| ratio <= times),
            Some(Goal::AtMost(most)) => Some(ours <= most),
            None => None,
        };
        self
    }

    fn shown(&self, value: f64) -> String {
        match self.unit {
            Unit::Milliseconds if value < 10.0 => format!("{value:.2} ms"),
            Unit::Milliseconds if value < 100.0 => format!("{value:.1} ms"),
            Unit::Milliseconds => format!("{value:.0} ms"),
            Unit::Bytes => render::size(value.max(0.0) as u64),
        }
    }

    fn cells(&self) -> [String; 7] {
        let median =
            |summary: Option<Summary>| summary.map_or("-".into(), |s| self.shown(s.median));
        let several = self.forkyard.filter(|summary| summary.count > 1);
        [
            self.name.clone(),
            median(self.forkyard),
            several.map_or("-".into(), |summary| self.shown(summary.p95)),
            match (self.against, self.peer) {
                (Some(against), peer @ Some(_)) => format!("{} {}", against.word(), median(peer)),
                _ => "-".into(),
            },
            self.ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")),
            match self.goal {
                Some(Goal::Faster(times)) => format!("{times} times faster"),
                Some(Goal::Within(times)) => format!("at most {times}"),
                Some(Goal::AtMost(most)) => format!("at most {}", self.shown(most)),
                None => "-".into(),
            },
            match (self.met, self.goal) {
                (Some(true), _) => "met",
                (Some(false), _) => "MISSED",
                (None, Some(_)) => "not judged",
                (None, None) => "",
            }
            .to_owned(),
        ]
    }
}

impl Against {
    fn word(self) -> &'static str {
        match self {
            Self::AgentDocker => "agentdocker-lite",
            Self::Bubblewrap => "bubblewrap",
            Self::Criu => "CRIU",
            Self::Floor => "floor",
            Self::First => "first",
            Self::Fresh => "fresh",
        }
    }
}

impl Report {
    pub(super) fn new(server: &Server, image: Option<&str>, options: &BenchOptions) -> Self {
        let system = rustix::system::uname();
        let mode = forkyard_engine::Mode::detect().map_or("unknown", |mode| mode.word());
        Self {
            version: env!("CARGO_PKG_VERSION"),
            kernel: system.release().to_string_lossy().into_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            file_system: file_system(server),
            mode: mode.to_owned(),
            image: image.map_or("host", |_| options.image.as_deref().unwrap_or("host")).to_owned(),
            rounds: options.rounds,
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Whether the run has root's rights.
    pub(super) fn is_root(&self) -> bool {
        self.mode == forkyard_engine::Mode::Root.word()
    }

    pub(super) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Says what was left out, and why.
    pub(super) fn note(&mut self, why: String) {
        render::note(&format!("note: {why}"));
        self.notes.push(why);
    }

    /// The report for reading.
    pub(super) fn text(&self) -> String {
        let heads = ["OPERATION", "FORKYARD", "P95", "PEER", "RATIO", "GOAL", ""];
        let mut table = Table::new(&heads);
        self.rows.iter().for_each(|row| table.row(row.cells()));
        // Writing to a string cannot fail.
        let mut text = table.text();
        let bars = self.bars();
        if !bars.is_empty() {
            let _ = write!(text, "\nmedians beside agentdocker-lite, by the logarithm\n{bars}");
        }
        let _ = writeln!(
            text,
            "\nforkyard {}, Linux {}, {} processors, {}, mode {}, image {}, {} rounds",
            self.version,
            self.kernel,
            self.processors,
            self.file_system,
            self.mode,
            self.image,
            self.rounds
        );
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }

    /// A bar for each side of what was compared with agentdocker-lite: from 10 µs on, as the
    /// times lie three orders of magnitude apart.
    fn bars(&self) -> String {
        let length = |value: f64| ((value * 100.0).max(1.0).log10() * 10.0) as usize;
        let mut text = String::new();
        for row in &self.rows {
            let (Some(ours), Some(theirs)) = (row.forkyard, row.peer) else { continue };
            if row.against != Some(Against::AgentDocker) {
                continue;
            }
            for (name, mark, value) in
                [(row.name.as_str(), "█", ours.median), ("", "░", theirs.median)]
            {
                let bar = mark.repeat(length(value).clamp(1, BAR + 20));
                let _ = writeln!(text, "  {name:<34} {bar} {}", row.shown(value));
            }
        }
        text
    }
}

/// The kind of file system that the run was on.
fn file_system(server: &Server) -> String {
    // Longest mount point that the directory is below; proc_pid_mounts(5).
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    fields
        .filter(|(point, _)| server.directory().starts_with(point))
        .max_by_key(|(point, _)| point.len())
        .map_or_else(|| "unknown file system".to_owned(), |(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_against_a_peer_is_judged_only_beside_the_peer() {
        let row = Row::times("create", &[1.0]).goal(Goal::Faster(8.0));
        assert_eq!((row.met, row.cells()[6].as_str()), (None, "not judged"));
        let row = row.peer(Against::AgentDocker, &[8.0]);
        assert_eq!((row.met, row.ratio), (Some(true), Some(8.0)));
        let row = row.peer(Against::AgentDocker, &[7.9]);
        assert_eq!(row.met, Some(false));
    }

    #[test]
    fn a_goal_within_a_multiple_turns_the_ratio_round() {
        let row = Row::times("run", &[12.0]).peer(Against::Bubblewrap, &[10.0]);
        let row = row.goal(Goal::Within(1.2));
        assert_eq!((row.met, row.ratio), (Some(true), Some(1.2)));
    }

    #[test]
    fn a_limit_needs_no_peer() {
        let row = Row::bytes("memory", &[3.0]).goal(Goal::AtMost(2.0));
        assert_eq!(row.met, Some(false));
        let none = Row::bytes("memory", &[]).goal(Goal::AtMost(2.0));
        assert_eq!((none.met, none.cells()[1].as_str()), (None, "-"));
    }
}
