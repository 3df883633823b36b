//! What running sandboxes use, again and again.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

use forkyard_engine::model::{Sandbox, SandboxId};

use crate::args::TopOptions;
use crate::client::{Client, Url};
use crate::error::Error;
use crate::render::{self, Percent, Table};

/// Moves to the top left and clears what is below (ECMA-48 CUP and ED).
const HOME_AND_CLEAR: &str = "\x1b[H\x1b[J";

/// `forkyard top`
pub(super) async fn top(client: &Client, options: &TopOptions) -> Result<(), Error> {
    let live = std::io::stdout().is_terminal() && !options.json.json;
    let iterations = options.iterations.unwrap_or(if live { u64::MAX } else { 1 });
    let mut before = Samples::default();
    for iteration in 0..iterations {
        if iteration > 0 {
            tokio::time::sleep(Duration::from_secs(options.interval)).await;
        }
        let sandboxes: Vec<Sandbox> = client.get(Url::new("/v1/usage")).await?;
        if options.json.json {
            render::json(&sandboxes)?;
            continue;
        }
        let now = render::now();
        let mut text = picture(&sandboxes, &before, now);
        if live {
            text.insert_str(0, HOME_AND_CLEAR);
        }
        render::data(text.as_bytes())?;
        before = Samples::of(&sandboxes, now);
    }
    Ok(())
}

/// Processor time of each sandbox at one moment.
#[derive(Debug, Default)]
struct Samples {
    at: u64,
    cpu_us: HashMap<SandboxId, u64>,
}

impl Samples {
    fn of(sandboxes: &[Sandbox], at: u64) -> Self {
        let cpu = |sandbox: &Sandbox| Some((sandbox.id.clone(), sandbox.usage.as_ref()?.cpu_us?));
        Self { at, cpu_us: sandboxes.iter().filter_map(cpu).collect() }
    }

    /// What a sandbox used since this sample; since its start where this has none of it.
    fn share(&self, sandbox: &Sandbox, now: u64) -> Option<Percent> {
        let cpu_us = sandbox.usage.as_ref()?.cpu_us?;
        let (from, before) = match self.cpu_us.get(&sandbox.id) {
            Some(before) => (self.at, *before),
            None => (sandbox.started_at?, 0),
        };
        let over_ms = now.saturating_sub(from);
        // A reset begins to count anew.
        Some(Percent { spent_us: cpu_us.saturating_sub(before), over_ms })
    }
}

fn picture(sandboxes: &[Sandbox], before: &Samples, now: u64) -> String {
    let mut table = Table::new(&["ID", "NAME", "CPU", "MEMORY", "LIMIT", "PIDS", "UP"]);
    for sandbox in sandboxes {
        let usage = sandbox.usage.clone().unwrap_or_default();
        let started = sandbox.started_at.unwrap_or(sandbox.created_at);
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table.row([
            sandbox.id.to_string(),
            or_dash(sandbox.name.clone()),
            or_dash(before.share(sandbox, now).map(|share| share.to_string())),
            or_dash(usage.memory.map(render::size)),
            or_dash(sandbox.spec.limits.memory.map(render::size)),
            or_dash(usage.pids.map(|pids| pids.to_string())),
            render::duration(now.saturating_sub(started)),
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use forkyard_engine::model::{SandboxSpec, State, Usage};

    fn sandbox(cpu_us: u64) -> Sandbox {
        Sandbox {
            id: "0123456789ab".parse().unwrap(),
            name: None,
            image: "host".to_owned(),
            state: State::Running,
            reason: None,
            created_at: 0,
            started_at: Some(0),
            ended_at: None,
            deadline: None,
            parent: None,
            pid: None,
            spec: SandboxSpec::default(),
            usage: Some(Usage { cpu_us: Some(cpu_us), pids: Some(3), ..Usage::default() }),
        }
    }

    #[test]
    fn the_share_is_of_the_time_since_the_last_picture() {
        let first = Samples::default();
        assert!(picture(&[sandbox(1_000_000)], &first, 10_000).contains("10.0%"));
        let second = Samples::of(&[sandbox(1_000_000)], 10_000);
        assert!(picture(&[sandbox(3_000_000)], &second, 12_000).contains("100.0%"));
    }
}
