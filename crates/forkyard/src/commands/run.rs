//! Commands that are started, and joined to our stdio.

use forkyard_api::routes;
use forkyard_engine::model::{Command, CommandSpec, Created, Exit};

use crate::args::{
    AttachOptions, CreateOptions, ExecOptions, RunOptions, ShellOptions, StdioOptions,
};
use crate::client::{Client, Url};
use crate::error::{Error, LostCommand};
use crate::render;
use crate::stdio::{Joined, Relay, Target, attach_url};

/// Finds the best shell of an image: bash where there is one.
const SHELL: &str = "command -v bash >/dev/null 2>&1 && exec bash; exec sh";

/// `forkyard create`
pub(super) async fn create(client: &Client, options: CreateOptions) -> Result<(), Error> {
    let mut spec = options.sandbox.spec(options.image)?;
    spec.timeout_ms = options.timeout.map(|timeout| timeout.as_millis() as u64);
    spec.from = options.from;
    let created: Created = client.post(Url::new("/v1/sandboxes"), &spec).await?;
    let id = created.sandbox.id.as_str();
    if options.json.json { render::json(&created) } else { render::line(id) }
}

/// `forkyard run`
pub(super) async fn run(client: &Client, options: RunOptions) -> Result<u8, Error> {
    if options.image.is_none() && options.shell.is_none() && options.command.is_empty() {
        return Err(Error::Usage {
            what: "run: no command, and this machine's own image has none".to_owned(),
            hint: Some("put a command after `--`: `forkyard run -- CMD...`".to_owned()),
        });
    }
    options.stdio.check()?;
    let body = routes::Run {
        sandbox: options.sandbox.spec(options.image)?,
        command: CommandSpec {
            argv: options.command,
            entrypoint: options.entrypoint.map(|program| match program.as_str() {
                "" => Vec::new(),
                _ => vec![program],
            }),
            shell: options.shell,
            tty: options.stdio.terminal(),
            stdin: options.stdio.interactive,
            timeout_ms: options.timeout.map(|timeout| timeout.as_millis() as u64),
            ..CommandSpec::default()
        },
        keep: options.keep,
    };
    let relay = Relay::prepare(joined(options.stdio))?;
    let stream = client.open(Url::new("/v1/run"), &body).await?;
    let exit = relay.join(client, stream, Target::default()).await?;
    Ok(report(&exit))
}

/// `forkyard exec`
pub(super) async fn exec(client: &Client, options: ExecOptions) -> Result<u8, Error> {
    options.stdio.check()?;
    let spec = CommandSpec {
        argv: options.command,
        entrypoint: None,
        shell: options.shell,
        env: options.options.variables()?,
        cwd: options.options.workdir,
        user: options.options.user,
        tty: options.stdio.terminal(),
        stdin: options.stdio.interactive,
        detach: options.detach,
        timeout_ms: options.timeout.map(|timeout| timeout.as_millis() as u64),
    };
    if options.detach {
        let url = Url::sandbox(&options.id).part("commands");
        let command: Command = client.post(url, &spec).await?;
        render::line(&command.id.to_string())?;
        return Ok(0);
    }
    start(client, options.id, &spec, options.stdio).await
}

/// `forkyard shell`: on a terminal when ours is one, else lines from stdin.
pub(super) async fn shell(client: &Client, options: ShellOptions) -> Result<u8, Error> {
    use std::io::IsTerminal;
    let tty = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let stdio = StdioOptions { interactive: true, tty };
    let spec = CommandSpec {
        argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), SHELL.to_owned()],
        env: options.options.variables()?,
        cwd: options.options.workdir,
        user: options.options.user,
        tty: stdio.terminal(),
        stdin: true,
        ..CommandSpec::default()
    };
    start(client, options.id, &spec, stdio).await
}

/// `forkyard attach`
pub(super) async fn attach(client: &Client, options: AttachOptions) -> Result<u8, Error> {
    let (id, command) = (options.path.id, options.path.command);
    let known: Command = client.get(Url::command(&id, command)).await?;
    let joined = Joined { stdin: options.interactive, tty: known.tty };
    let offsets = crate::client::frames::Offsets { stdout: options.stdout, stderr: options.stderr };
    follow(client, LostCommand { sandbox: id, command, offsets }, joined)
        .await
        .map(|exit| report(&exit))
}

/// Shows a command's output from an offset on, until it has ended.
pub(super) async fn follow(
    client: &Client,
    command: LostCommand,
    joined: Joined,
) -> Result<Exit, Error> {
    let relay = Relay::prepare(joined)?;
    let stream = client.attach(attach_url(&command)).await?;
    let target = Target {
        sandbox: Some(command.sandbox),
        command: Some(command.command),
        offsets: command.offsets,
    };
    relay.join(client, stream, target).await
}

async fn start(
    client: &Client,
    id: String,
    spec: &CommandSpec,
    stdio: StdioOptions,
) -> Result<u8, Error> {
    let relay = Relay::prepare(joined(stdio))?;
    let stream = client.open(Url::sandbox(&id).part("commands"), spec).await?;
    let target = Target { sandbox: Some(id), ..Target::default() };
    let exit = relay.join(client, stream, target).await?;
    Ok(report(&exit))
}

fn joined(stdio: StdioOptions) -> Joined {
    Joined { stdin: stdio.interactive, tty: stdio.tty }
}

/// Says what the exit code alone does not, and gives the code.
fn report(exit: &Exit) -> u8 {
    if exit.oom {
        render::note("the command ran out of memory and was killed; `--memory` sets the limit");
    } else if exit.timed_out {
        render::note("the command was killed because its time was up");
    }
    u8::try_from(exit.code).unwrap_or(u8::MAX)
}
