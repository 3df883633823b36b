//! How far a pull or an import is: bars on a terminal, a line a step elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal;

use forkyard_api::routes::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{cut, visible};

/// Where progress is shown.
#[derive(Debug)]
pub(crate) enum ProgressView {
    /// A bar a layer.
    Bars { all: MultiProgress, bars: HashMap<String, ProgressBar> },
    /// A line when a layer comes to its next step.
    Lines { steps: HashMap<String, String> },
    /// Nowhere.
    Quiet,
}

impl ProgressView {
    /// What suits stderr.
    pub(crate) fn new(quiet: bool) -> Self {
        if quiet {
            Self::Quiet
        } else if std::io::stderr().is_terminal() {
            Self::Bars { all: MultiProgress::new(), bars: HashMap::new() }
        } else {
            Self::Lines { steps: HashMap::new() }
        }
    }

    /// Takes in what the server says; notes are shown whatever the view.
    pub(crate) fn update(&mut self, progress: &Progress) {
        match (self, progress) {
            (Self::Bars { all, bars }, Progress::Layer { id, step, done, total }) => {
                let bar = bars.entry(id.clone()).or_insert_with(|| {
                    let bar = all.add(ProgressBar::new(0));
                    bar.set_style(bar_style());
                    bar.set_prefix(short(id));
                    bar
                });
                bar.set_length(total.unwrap_or(*done));
                bar.set_position(*done);
                bar.set_message(visible(step).into_owned());
                if is_final(step) {
                    bar.finish();
                }
            }
            (Self::Bars { all, .. }, Progress::Note { message }) => {
                let _ = all.println(format!("note: {}", visible(message)));
            }
            (Self::Lines { steps }, Progress::Layer { id, step, .. }) => {
                if let Some(line) = step_line(steps, id, step) {
                    super::note(&line);
                }
            }
            (_, Progress::Note { message }) => super::note(&format!("note: {message}")),
            _ => {}
        }
    }
}

fn is_final(step: &str) -> bool {
    matches!(step, "done" | "present")
}

fn step_line(steps: &mut HashMap<String, String>, id: &str, step: &str) -> Option<String> {
    let before = steps.insert(id.to_owned(), step.to_owned());
    (before.as_deref() != Some(step)).then(|| format!("{}: {step}", short(id)))
}

/// A digest's first twelve digits, as Docker shows it; other names as they are.
fn short(id: &str) -> String {
    let digits = id.strip_prefix("sha256:").map_or(id, |hex| hex.get(..12).unwrap_or(hex));
    visible(&cut(digits, 40)).into_owned()
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:12} {bar:30} {bytes:>10}/{total_bytes:10} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_once() {
        let mut steps = HashMap::new();
        let id = "sha256:0123456789abcdef";
        assert_eq!(
            step_line(&mut steps, id, "downloading").as_deref(),
            Some("0123456789ab: downloading")
        );
        assert_eq!(step_line(&mut steps, id, "downloading"), None);
        assert_eq!(step_line(&mut steps, id, "done").as_deref(), Some("0123456789ab: done"));
    }

    #[test]
    fn hostile_names_of_layers_stay_text() {
        assert_eq!(short("\x1b[2J"), "\\u{1b}[2J");
        assert_eq!(short("sha256:é"), "é");
    }
}
