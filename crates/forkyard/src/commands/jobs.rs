//! Commands that run or ran in a sandbox: list, wait, signal, read their output.

use std::time::Duration;

use forkyard_api::routes;
use forkyard_engine::model::{Command, Event, Exit, Sandbox, State};

use crate::args::{KillOptions, LogsOptions, PsOptions, WaitOptions};
use crate::client::frames::Offsets;
use crate::client::{Client, Url};
use crate::error::{Error, LostCommand};
use crate::render::{self, Table};
use crate::stdio::Joined;

/// Between two looks at a journal.
const LOOK: Duration = Duration::from_millis(500);

/// `forkyard ps`
pub(super) async fn ps(client: &Client, options: &PsOptions) -> Result<(), Error> {
    let mut commands: Vec<Command> = client.get(Url::sandbox(&options.id).part("commands")).await?;
    commands.retain(|command| options.all || command.exit.is_none());
    if options.json.json {
        return render::json(&commands);
    }
    if options.quiet {
        return render::lines(commands.iter().map(|command| command.id));
    }
    render::data(list(&commands, render::now()).as_bytes())
}

/// `forkyard wait`
pub(super) async fn wait(client: &Client, options: &WaitOptions) -> Result<(), Error> {
    let url = Url::command(&options.path.id, options.path.command).part("wait");
    let command: Command = client.post(url, &serde_json::json!({})).await?;
    if options.json.json {
        return render::json(&command);
    }
    match command.exit {
        Some(exit) => render::line(&exit.code.to_string()),
        None => Err(Error::Protocol("a command that was waited for has not ended".to_owned())),
    }
}

/// `forkyard kill`
pub(super) async fn kill(client: &Client, options: &KillOptions) -> Result<(), Error> {
    let url = Url::command(&options.path.id, options.path.command).part("signal");
    client.tell(url, &routes::Signal { signal: options.signal.0 }).await
}

/// `forkyard logs`
pub(super) async fn logs(client: &Client, options: &LogsOptions) -> Result<(), Error> {
    match options.command {
        None => journal(client, options).await,
        Some(command) if options.follow => {
            let offsets = Offsets::default();
            let command = LostCommand { sandbox: options.id.clone(), command, offsets };
            let joined = Joined { stdin: false, tty: false };
            super::run::follow(client, command, joined).await.map(drop)
        }
        Some(command) => {
            let url = |stream: &str| {
                Url::command(&options.id, command).part("output").query("stream", stream)
            };
            let mut stdout = client.download(url("stdout")).await?;
            while let Some(chunk) = stdout.chunk().await? {
                render::data(&chunk)?;
            }
            let mut stderr = client.download(url("stderr")).await?;
            while let Some(chunk) = stderr.chunk().await? {
                render::talk(&chunk);
            }
            Ok(())
        }
    }
}

/// A sandbox's journal, until it has ended or is gone when it is followed.
async fn journal(client: &Client, options: &LogsOptions) -> Result<(), Error> {
    let mut seen = None;
    loop {
        // Asked for before the journal: whatever led to the end is in it then.
        let goes_on = options.follow && is_there(client, &options.id).await?;
        let events = client.get::<Vec<Event>>(Url::sandbox(&options.id).part("events")).await;
        let events = match events {
            // Removed while it was followed.
            Err(error) if error.is_not_found() && seen.is_some() => return Ok(()),
            events => events?,
        };
        let new = |event: &&Event| seen.is_none_or(|seen| event.seq > seen);
        for event in events.iter().filter(new) {
            if options.json {
                render::json_line(event)?;
            } else {
                let (time, kind) = (render::time(event.at), &event.kind);
                render::line(format!("{time}   {kind:8}   {}", event.detail).trim_end())?;
            }
        }
        seen = events.iter().map(|event| event.seq).max().or(seen).or(Some(0));
        if !goes_on {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn is_there(client: &Client, id: &str) -> Result<bool, Error> {
    match client.get::<Sandbox>(Url::sandbox(id)).await {
        Ok(sandbox) => Ok(!matches!(sandbox.state, State::Ended | State::Deleting)),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

fn list(commands: &[Command], now: u64) -> String {
    let mut table = Table::new(&["COMMAND", "PID", "STARTED", "STATE", "ARGUMENTS"]);
    for command in commands {
        table.row([
            command.id.to_string(),
            command.pid.to_string(),
            render::age(now, command.started_at),
            command.exit.as_ref().map_or("running".to_owned(), ended),
            render::cut(&command.argv.join(" "), 60),
        ]);
    }
    table.text()
}

fn ended(exit: &Exit) -> String {
    let why = match exit {
        Exit { oom: true, .. } => "out of memory".to_owned(),
        Exit { timed_out: true, .. } => "timeout".to_owned(),
        Exit { signal: Some(signal), .. } => format!("signal {signal}"),
        _ => return format!("exited {}", exit.code),
    };
    format!("exited {} ({why})", exit.code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use forkyard_engine::model::CommandId;

    #[test]
    fn a_list_tells_how_commands_ended() {
        let command = |id, exit| Command {
            id: CommandId(id),
            pid: id + 1,
            argv: vec!["sh".to_owned(), "-c".to_owned(), "a\nb".to_owned()],
            tty: false,
            detach: false,
            started_at: 0,
            exit,
        };
        let exit = |code, signal, timed_out| Exit { code, signal, timed_out, oom: false };
        let commands = [
            command(1, None),
            command(2, Some(exit(0, None, false))),
            command(3, Some(exit(137, Some(9), false))),
            command(4, Some(exit(124, Some(9), true))),
        ];
        insta::assert_snapshot!(list(&commands, 120_000), @r"
        COMMAND   PID   STARTED         STATE                   ARGUMENTS
        1         2     2 minutes ago   running                 sh -c a\nb
        2         3     2 minutes ago   exited 0                sh -c a\nb
        3         4     2 minutes ago   exited 137 (signal 9)   sh -c a\nb
        4         5     2 minutes ago   exited 124 (timeout)    sh -c a\nb
        ");
    }
}
