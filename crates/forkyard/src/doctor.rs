//! `forkyard doctor`: what this host offers, what is missing, how to get it.
//!
//! [`report`] orders what [`Host`] found for reading; the report is the JSON of `--json`, and
//! [`Report::render`] its text. Marks are words, so that they need no colour:
//!
//! ```text
//! namespaces
//!   ok       user namespace        works
//!   MISSING  proc mount            Operation not permitted (os error 1)
//!   lacking  subordinate ids       0 user ids, 0 group ids; 65536 of each are needed
//! ```
//!
//! `MISSING` is what no sandbox can do without; `lacking` costs something; `unknown` could not be
//! told.

use std::io::{self, Write};

use forkyard_sys::host::{Feature, Finding, Group, Host, Mode, Presence};
use serde::Serialize;

/// What `doctor` says.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Whether sandboxes work here.
    pub(crate) works: bool,
    /// How they get their ids; none if they do not work.
    pub(crate) mode: Option<Mode>,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// The directory of the store, or its nearest parent that exists.
    pub(crate) store: Option<String>,
    /// All that was looked at.
    pub(crate) groups: Vec<Section>,
    /// How long looking took, in microseconds.
    pub(crate) took_us: u64,
}

/// What belongs together.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Section {
    /// Its subject.
    pub(crate) group: Group,
    /// Its features, in order.
    pub(crate) features: Vec<Row>,
}

/// One feature.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// The feature.
    pub(crate) feature: Feature,
    /// Its name.
    pub(crate) name: &'static str,
    /// Whether sandboxes need it.
    pub(crate) required: bool,
    /// What was found.
    #[serde(flatten)]
    pub(crate) finding: Finding,
    /// What its lack costs, if it is not present.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cost: Option<&'static str>,
}

/// Orders what was found.
pub(crate) fn report(host: &Host) -> Report {
    let mut groups: Vec<Section> = Vec::new();
    for (&feature, finding) in &host.findings {
        let cost = (finding.presence != Presence::Present).then(|| feature.cost());
        let row = Row {
            feature,
            name: feature.name(),
            required: feature.required(),
            finding: finding.clone(),
            cost,
        };
        match groups.last_mut() {
            Some(section) if section.group == feature.group() => section.features.push(row),
            _ => groups.push(Section { group: feature.group(), features: vec![row] }),
        }
    }
    let verdict = host.verdict();
    Report {
        works: verdict.is_ok(),
        mode: verdict.ok(),
        kernel: host.kernel.release.clone(),
        store: host.store.as_ref().map(|store| store.directory.display().to_string()),
        groups,
        took_us: host.took_us,
    }
}

impl Report {
    /// 0 if sandboxes work here, 1 if not.
    pub(crate) fn exit_code(&self) -> u8 {
        u8::from(!self.works)
    }

    /// Writes the report for reading: the table, then what to do, then the verdict.
    pub(crate) fn render(&self, out: &mut dyn Write) -> io::Result<()> {
        let width = self.rows().map(|row| row.name.len()).max().unwrap_or(0);
        for section in &self.groups {
            writeln!(out, "{}", title(section.group))?;
            for row in &section.features {
                let detail = &row.finding.detail;
                writeln!(out, "  {:<7}  {:width$}  {detail}", row.mark(), row.name)?;
            }
            writeln!(out)?;
        }
        // What stops everything comes first.
        for required in [true, false] {
            let lacking = |row: &&Row| row.finding.presence == Presence::Absent;
            for row in self.rows().filter(lacking).filter(|row| row.required == required) {
                writeln!(out, "without {}: {}", row.name, row.feature.cost())?;
                if let Some(remedy) = &row.finding.remedy {
                    writeln!(out, "  hint: {remedy}")?;
                }
            }
        }
        if self.rows().any(|row| row.finding.presence == Presence::Absent) {
            writeln!(out)?;
        }
        if let Some(mode) = self.mode {
            return writeln!(out, "Sandboxes work here, {mode}.");
        }
        let missing = self.rows().filter(|row| row.mark() == MISSING);
        let names: Vec<&str> = missing.map(|row| row.name).collect();
        writeln!(out, "Sandboxes do not work here: no {}.", names.join(", no "))
    }

    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.groups.iter().flat_map(|section| &section.features)
    }
}

const MISSING: &str = "MISSING";

impl Row {
    fn mark(&self) -> &'static str {
        match (self.finding.presence, self.required) {
            (Presence::Present, _) => "ok",
            (Presence::Absent, true) => MISSING,
            (Presence::Absent, false) => "lacking",
            (Presence::Unknown, _) => "unknown",
        }
    }
}

fn title(group: Group) -> &'static str {
    match group {
        Group::Kernel => "kernel",
        Group::Namespaces => "namespaces",
        Group::Files => "files",
        Group::Confinement => "confinement",
        Group::Resources => "resources",
        Group::Fork => "live fork",
        Group::Devices => "devices",
        Group::Limits => "limits",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A real host with one finding put in place.
    fn host_with(feature: Feature, presence: Presence, remedy: Option<&str>) -> Host {
        let mut host = Host::probe_quick();
        for finding in host.findings.values_mut() {
            finding.presence = Presence::Present;
            finding.remedy = None;
        }
        let detail = "as the test has it".to_owned();
        let finding = Finding { presence, detail, remedy: remedy.map(str::to_owned) };
        host.findings.insert(feature, finding);
        host
    }

    fn text(report: &Report) -> String {
        let mut out = Vec::new();
        report.render(&mut out).expect("write to memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_missing_requirement_is_the_verdict_with_its_hint() {
        let host = host_with(Feature::UserNamespace, Presence::Absent, Some("sysctl -w a=1"));
        let report = report(&host);
        let text = text(&report);
        assert_eq!((report.exit_code(), report.mode), (1, None));
        assert!(text.contains("  MISSING  user namespace"), "{text}");
        assert!(text.contains("without user namespace: no sandbox"), "{text}");
        assert!(text.contains("\n  hint: sysctl -w a=1\n"), "{text}");
        assert!(text.ends_with("Sandboxes do not work here: no user namespace.\n"), "{text}");
    }

    #[test]
    fn what_only_costs_leaves_the_verdict_good() {
        for presence in [Presence::Absent, Presence::Unknown] {
            let host = host_with(Feature::Landlock, presence, None);
            let report = report(&host);
            assert_eq!((report.exit_code(), report.mode), (0, Some(host.mode)));
            assert!(text(&report).contains("Sandboxes work here"));
        }
    }

    #[test]
    fn json_names_features_with_presence_detail_and_cost() {
        let host = host_with(Feature::Landlock, Presence::Absent, None);
        let json = serde_json::to_value(report(&host)).expect("json");
        let rows: Vec<_> = json["groups"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|group| group["features"].as_array().cloned().unwrap_or_default())
            .collect();
        let row = rows.iter().find(|row| row["feature"] == "landlock").expect("landlock");
        assert_eq!(row["presence"], "absent");
        assert_eq!(row["detail"], "as the test has it");
        assert_eq!(row["cost"], Feature::Landlock.cost());
        assert_eq!(json["works"], true);
    }

    #[test]
    fn text_has_one_line_for_each_feature() {
        let host = host_with(Feature::Seccomp, Presence::Present, None);
        let text = text(&report(&host));
        let marked = text.lines().filter(|line| line.starts_with("  ok ")).count();
        assert_eq!(marked, host.findings.len());
    }
}
