//! Sandboxes as a whole: list, show, reset, remove.

use forkyard_engine::model::{Net, Sandbox, State, Volume, Workspace, WorkspaceMode};
use hyper::Method;

use super::each;
use crate::args::{InspectOptions, LsOptions, RmOptions};
use crate::client::{Client, Url};
use crate::error::Error;
use crate::render::{self, Table};

/// `forkyard ls`
pub(super) async fn ls(client: &Client, options: &LsOptions) -> Result<(), Error> {
    let mut sandboxes: Vec<Sandbox> = client.get(Url::new("/v1/sandboxes")).await?;
    sandboxes.retain(|sandbox| options.all || sandbox.state != State::Ended);
    if options.json.json {
        return render::json(&sandboxes);
    }
    if options.quiet {
        return render::lines(sandboxes.iter().map(|sandbox| &sandbox.id));
    }
    render::data(list(&sandboxes, render::now()).as_bytes())
}

/// `forkyard inspect`
pub(super) async fn inspect(client: &Client, options: &InspectOptions) -> Result<(), Error> {
    let mut sandboxes = Vec::new();
    for id in &options.ids.ids {
        sandboxes.push(client.get::<Sandbox>(Url::sandbox(id)).await?);
    }
    if options.json.json {
        return render::json(&sandboxes);
    }
    let now = render::now();
    let cards: Vec<String> = sandboxes.iter().map(|sandbox| card(sandbox, now)).collect();
    render::data(cards.join("\n").as_bytes())
}

/// `forkyard reset`
pub(super) async fn reset(client: &Client, ids: &[String]) -> Result<(), Error> {
    each(ids, false, async |id| client.call(Method::POST, Url::sandbox(&id).part("reset")).await)
        .await
}

/// `forkyard rm`
pub(super) async fn rm(client: &Client, options: &RmOptions) -> Result<(), Error> {
    let remove = async |id: String| client.call(Method::DELETE, Url::sandbox(&id)).await;
    each(&options.ids.ids, options.force, remove).await
}

/// The state in words, with the reason of an end.
fn state(sandbox: &Sandbox) -> String {
    let word = match sandbox.state {
        State::Creating => "creating",
        State::Running => "running",
        State::Resetting => "resetting",
        State::Paused => "paused",
        State::Resuming => "resuming",
        State::Ended => "ended",
        State::Deleting => "deleting",
    };
    match &sandbox.reason {
        Some(reason) => format!("{word} ({reason})"),
        None => word.to_owned(),
    }
}

fn list(sandboxes: &[Sandbox], now: u64) -> String {
    let mut table = Table::new(&["ID", "NAME", "IMAGE", "STATE", "CREATED", "ENDS"]);
    for sandbox in sandboxes {
        let ends = sandbox.deadline.filter(|_| sandbox.state != State::Ended);
        table.row([
            sandbox.id.to_string(),
            sandbox.name.clone().unwrap_or_default(),
            render::cut(&sandbox.image, 40),
            state(sandbox),
            render::age(now, sandbox.created_at),
            ends.map(|at| render::age(now, at)).unwrap_or_default(),
        ]);
    }
    table.text()
}

fn card(sandbox: &Sandbox, now: u64) -> String {
    let mut table = Table::bare();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            table.row([format!("{name}:"), value]);
        }
    };
    let moment = |at: u64| format!("{} ({})", render::time(at), render::age(now, at));
    let (spec, usage) = (&sandbox.spec, sandbox.usage.clone().unwrap_or_default());
    add("Id", Some(sandbox.id.to_string()));
    add("Name", sandbox.name.clone());
    add("Image", Some(sandbox.image.clone()));
    add("State", Some(state(sandbox)));
    add("Created", Some(moment(sandbox.created_at)));
    add("Started", sandbox.started_at.map(moment));
    add("Ended", sandbox.ended_at.map(moment));
    add("Ends", sandbox.deadline.filter(|_| sandbox.ended_at.is_none()).map(moment));
    add("Parent", sandbox.parent.as_ref().map(ToString::to_string));
    add("Init", sandbox.pid.map(|pid| format!("process {pid} of this machine")));
    add("User", spec.user.clone());
    add("Directory", spec.workdir.clone());
    add("Network", Some(if spec.net == Net::Host { "host" } else { "none" }.to_owned()));
    let limited = |used: Option<String>, limit: Option<String>| match (used, limit) {
        (Some(used), Some(limit)) => Some(format!("{used} of {limit}")),
        (Some(used), None) => Some(used),
        (None, limit) => limit.map(|limit| format!("at most {limit}")),
    };
    let limits = &spec.limits;
    add("Memory", limited(usage.memory.map(render::size), limits.memory.map(render::size)));
    add("Peak", usage.memory_peak.map(render::size));
    add("Time", usage.cpu_us.map(|us| format!("{:.3} s of processor", us as f64 / 1e6)));
    add("Processors", limits.cpus.map(|cpus| format!("at most {cpus}")));
    let count = |n: Option<u64>| n.map(|n| n.to_string());
    add("Processes", limited(count(usage.pids), count(limits.pids.map(u64::from))));
    add("Out of memory", usage.oom_kills.filter(|kills| *kills > 0).map(|n| format!("{n} killed")));
    for (key, value) in &spec.env {
        add("Variable", Some(format!("{key}={value}")));
    }
    add("Workspace", spec.workspace.as_ref().map(workspace_text));
    for volume in &spec.volumes {
        add("Volume", Some(volume_text(volume)));
    }
    for (key, value) in &spec.metadata {
        add("Label", Some(format!("{key}={value}")));
    }
    table.text()
}

fn workspace_text(workspace: &Workspace) -> String {
    let mode = match workspace.mode {
        WorkspaceMode::Cow => "",
        WorkspaceMode::Rw => ":rw",
        WorkspaceMode::Ro => ":ro",
    };
    format!("{}:{}{mode}", workspace.source, workspace.target)
}

fn volume_text(volume: &Volume) -> String {
    let mode = if volume.read_only { ":ro" } else { "" };
    format!("{}:{}{mode}", volume.source, volume.target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use forkyard_engine::model::{Limits, SandboxSpec, Usage};

    fn sandbox() -> Sandbox {
        Sandbox {
            id: "0123456789ab".parse().unwrap(),
            name: Some("box".to_owned()),
            image: "host".to_owned(),
            state: State::Running,
            reason: None,
            created_at: 1_000,
            started_at: Some(1_002),
            ended_at: None,
            deadline: Some(3_661_000),
            parent: None,
            pid: Some(77),
            spec: SandboxSpec {
                limits: Limits { memory: Some(1 << 30), cpus: Some(0.5), pids: None },
                metadata: [("team".to_owned(), "a\x1bb".to_owned())].into(),
                volumes: vec![Volume { source: "/s".into(), target: "/t".into(), read_only: true }],
                ..SandboxSpec::default()
            },
            usage: Some(Usage {
                memory: Some(3 << 20),
                cpu_us: Some(1_500_000),
                pids: Some(2),
                oom_kills: Some(1),
                ..Usage::default()
            }),
        }
    }

    #[test]
    fn a_list_has_a_line_a_sandbox() {
        let ended = Sandbox {
            name: None,
            state: State::Ended,
            reason: Some("out of memory".to_owned()),
            ..sandbox()
        };
        insta::assert_snapshot!(list(&[sandbox(), ended], 61_000), @r"
        ID             NAME   IMAGE   STATE                   CREATED        ENDS
        0123456789ab   box    host    running                 1 minute ago   in 1 hour
        0123456789ab          host    ended (out of memory)   1 minute ago
        ");
    }

    #[test]
    fn a_card_shows_what_is_used_of_what_is_allowed() {
        insta::assert_snapshot!(card(&sandbox(), 61_000), @r"
        Id:              0123456789ab
        Name:            box
        Image:           host
        State:           running
        Created:         1970-01-01 00:00:01Z (1 minute ago)
        Started:         1970-01-01 00:00:01Z (59 seconds ago)
        Ends:            1970-01-01 01:01:01Z (in 1 hour)
        Init:            process 77 of this machine
        Network:         none
        Memory:          3 MiB of 1 GiB
        Time:            1.500 s of processor
        Processors:      at most 0.5
        Processes:       2
        Out of memory:   1 killed
        Volume:          /s:/t:ro
        Label:           team=a\u{1b}b
        ");
    }
}
