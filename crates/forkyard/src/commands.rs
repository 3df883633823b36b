//! What each command does: one file a group.

mod copy;
mod diff;
mod fork;
mod generate;
mod images;
mod jobs;
mod keys;
mod run;
mod sandboxes;
mod server;
mod session;
mod snapshots;
mod top;

use crate::args::{Cli, Command};
use crate::client::Client;
use crate::error::Error;
use crate::paths::{Paths, Surroundings};

/// Does what the command line says; the exit code.
pub(crate) fn dispatch(cli: Cli) -> Result<u8, Error> {
    match cli.command {
        Command::Completion { shell } => generate::completion(shell).map(|()| 0),
        Command::Man { dir } => generate::man(dir.as_deref()).map(|()| 0),
        Command::Bench(options) => crate::bench::run(&options),
        Command::BenchFloor(options) => crate::bench::floor::serve(&options).map(|()| 0),
        Command::Doctor(json) => {
            let paths = Paths::resolve(&cli.paths, &Surroundings::of_process())?;
            server::doctor(&paths, json.json)
        }
        Command::Quickstart => crate::quickstart::quickstart(),
        Command::Serve(options) => {
            let paths = Paths::resolve(&cli.paths, &Surroundings::of_process())?;
            server::serve(paths, options).map(|()| 0)
        }
        command => {
            let paths = Paths::resolve(&cli.paths, &Surroundings::of_process())?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| Error::io("start the client", e))?;
            let code = runtime.block_on(ask(&Client::new(paths), command));
            // Nothing that is left, a request for nobody's answer, is worth waiting for.
            runtime.shutdown_background();
            code
        }
    }
}

/// The commands that are requests to the server.
async fn ask(client: &Client, command: Command) -> Result<u8, Error> {
    match command {
        Command::Run(options) => return run::run(client, *options).await,
        Command::Exec(options) if options.session => return session::line(client, options).await,
        Command::Exec(options) => return run::exec(client, options).await,
        Command::Shell(options) => return run::shell(client, options).await,
        Command::Attach(options) => return run::attach(client, options).await,
        Command::Create(options) => run::create(client, *options).await?,
        Command::Ls(options) => sandboxes::ls(client, &options).await?,
        Command::Inspect(options) => sandboxes::inspect(client, &options).await?,
        Command::Diff(options) => diff::diff(client, &options).await?,
        Command::Fork(options) => fork::fork(client, &options).await?,
        Command::Snapshot(options) => snapshots::snapshot(client, &options).await?,
        Command::Snapshots(options) => snapshots::snapshots(client, options).await?,
        Command::Pause(options) => snapshots::pause(client, &options).await?,
        Command::Resume(options) => snapshots::resume(client, &options).await?,
        Command::Reset(ids) => sandboxes::reset(client, &ids.ids).await?,
        Command::Rm(options) => sandboxes::rm(client, &options).await?,
        Command::Logs(options) => jobs::logs(client, &options).await?,
        Command::Ps(options) => jobs::ps(client, &options).await?,
        Command::Wait(options) => jobs::wait(client, &options).await?,
        Command::Kill(options) => jobs::kill(client, &options).await?,
        Command::Top(options) => top::top(client, &options).await?,
        Command::Cp(options) => copy::cp(client, &options).await?,
        Command::Image(command) => images::image(client, command).await?,
        Command::Key(command) => keys::key(client, command).await?,
        Command::Stop(options) => server::stop(client, &options).await?,
        Command::Version(json) => server::version(client, json.json).await?,
        // They need no server; `dispatch` has them.
        Command::Serve(_)
        | Command::Quickstart
        | Command::Doctor(_)
        | Command::Bench(_)
        | Command::BenchFloor(_)
        | Command::Completion { .. }
        | Command::Man { .. } => {}
    }
    Ok(0)
}

/// Does the same to several things and tells each failure; an error at the end if there was one.
async fn each<F>(names: &[String], force: bool, action: impl Fn(String) -> F) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let mut failed = Vec::new();
    for name in names {
        match action(name.clone()).await {
            Ok(()) => crate::render::line(name)?,
            Err(error) if force && error.is_not_found() => {}
            Err(error @ (Error::Start { .. } | Error::Connect { .. })) => return Err(error),
            Err(error) => failed.push(error),
        }
    }
    let Some(last) = failed.pop() else { return Ok(()) };
    failed.iter().for_each(crate::render::error);
    Err(last)
}
