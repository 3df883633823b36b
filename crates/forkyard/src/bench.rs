//! `forkyard bench`: what the operations of a sandbox's life take on this machine.
//!
//! One run makes a server of its own with a store of its own, warms it up, and measures in rounds.
//! In each round everything has its turn, the peers of `--peers` and the floor included, so that
//! what else the machine does falls on all of them alike; only ratios within one run are worth
//! quoting. Goals that compare with a peer are judged when that peer took part.
//!
//! | section | what is measured |
//! | --- | --- |
//! | `life` | one sandbox from create to delete over the HTTP API, beside [`floor`] and the peer |
//! | `once` | one command in a fresh sandbox by the command line, beside bubblewrap |
//! | `at-once` | 8, 32 and 100 whole lives at the same time |
//! | `fork` | live forks of running programs, beside CRIU's figures |
//! | `many` | 500 sandboxes with idle sessions: memory of each, and the time of the last create |
//!
//! The server's own size is taken before the first sandbox and after the last.

mod api;
mod at_once;
pub(crate) mod floor;
mod fork;
mod fork_files;
mod life;
mod many;
mod memory;
mod once;
mod options;
mod peers;
mod report;
mod samples;
mod server;

use std::sync::atomic::{AtomicBool, Ordering};

use options::Section;
pub(crate) use options::{BenchOptions, FloorOptions};
use peers::{AgentDocker, Bubblewrap};
use report::{Against, Goal, Report, Row};
use server::Server;

use crate::error::Error;
use crate::render;

/// Lives that are lived before anything is timed: page cache, the store's first rows, the
/// allocator's first pages.
const WARM_UP: usize = 5;

/// Most memory of a server at rest, in bytes (SPECIFICATION.md).
const REST_MAX: f64 = 20.0 * 1024.0 * 1024.0;

/// Set by SIGINT and SIGTERM: the run ends after the round that it is in, and cleans up.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// `forkyard bench`
pub(crate) fn run(options: &BenchOptions) -> Result<u8, Error> {
    if cfg!(debug_assertions) {
        render::note("note: this is a debug build; its times say nothing (cargo build --release)");
    }
    watch_signals()?;
    let server = Server::start()?;
    let image = image_name(&server, options.image.as_deref())?;
    let mut report = Report::new(&server, image.as_deref(), options);
    let peers = Peers::find(options, &server, &mut report);
    let rest = memory::of_all(&server.processes())?;

    measure(options, &server, image.as_deref(), peers, &mut report)?;

    let after = memory::of_all(&server.processes())?;
    report.add(
        Row::bytes("server at rest, before any sandbox", &[rest.resident])
            .goal(Goal::AtMost(REST_MAX)),
    );
    report.add(Row::bytes("server at rest, after the last", &[after.resident]));
    server.stop()?;
    if options.json {
        render::json(&report)?;
    } else {
        render::data(report.text().as_bytes())?;
    }
    Ok(0)
}

/// Who takes part beside forkyard.
struct Peers {
    bubblewrap: Option<Bubblewrap>,
    agentdocker: Option<AgentDocker>,
}

impl Peers {
    fn find(options: &BenchOptions, server: &Server, report: &mut Report) -> Self {
        let mut peers = Self { bubblewrap: None, agentdocker: None };
        if options.peers {
            let root = options.image.as_deref().filter(|image| image.contains('/'));
            match Bubblewrap::find(root) {
                Ok(found) => peers.bubblewrap = Some(found),
                Err(why) => report.note(why),
            }
            match AgentDocker::start(root, server.directory()) {
                Ok(found) => peers.agentdocker = Some(found),
                Err(why) => report.note(why),
            }
        }
        peers
    }
}

fn measure(
    options: &BenchOptions,
    server: &Server,
    image: Option<&str>,
    mut peers: Peers,
    report: &mut Report,
) -> Result<(), Error> {
    if options.has(Section::Life) {
        render::note("life: create, run, reset, delete ...");
        let floor = floor::Probe::start(server.directory(), options.image.as_deref())?;
        let lives = life::Lives { server, image, floor, peer: peers.agentdocker.as_mut() };
        lives.measure(options.rounds, report)?;
    }
    if options.has(Section::Once) {
        render::note("once: one command in a fresh sandbox ...");
        once::measure(server, image, peers.bubblewrap.as_ref(), options.rounds, report)?;
    }
    if options.has(Section::AtOnce) {
        for count in [8, 32, 100] {
            render::note(&format!("at-once: {count} whole lives ..."));
            let rounds = (options.rounds / 10).max(3);
            at_once::measure(server, image, peers.agentdocker.as_mut(), count, rounds, report)?;
        }
    }
    // The peer's interpreter is no longer needed, and its memory would be in the way.
    drop(peers);
    if options.has(Section::Fork) {
        render::note("fork: live forks of running programs ...");
        fork::measure(server, image, options.rounds, report)?;
    }
    if options.has(Section::Many) {
        render::note("many: 500 sandboxes with idle sessions ...");
        many::measure(server, image, report)?;
    }
    Ok(())
}

/// Imports a directory; another image must be there by its name, which only `host` is in a new
/// store.
fn image_name(server: &Server, asked: Option<&str>) -> Result<Option<String>, Error> {
    let Some(asked) = asked.filter(|asked| *asked != "host") else { return Ok(None) };
    server.import(asked).map(Some)
}

/// Milliseconds of what the server tells in microseconds.
fn milliseconds_of(microseconds: u64) -> f64 {
    microseconds as f64 / 1000.0
}

/// Fails once the run was interrupted.
fn check_interrupted() -> Result<(), Error> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

/// Takes SIGINT and SIGTERM on a thread of its own.
fn watch_signals() -> Result<(), Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let tried = |e| Error::io("watch for signals", e);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(tried)?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        let watch = |kind| signal(kind).map_err(tried);
        (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            INTERRUPTED.store(true, Ordering::Relaxed);
            render::note("interrupted: cleaning up");
            // The handler stays, so that a second signal does not leave a server behind.
            std::future::pending::<()>().await;
        });
    });
    Ok(())
}

/// How a row of forkyard's compares with a peer's: used by all sections.
fn beside(row: Row, peer: Against, times: Option<Vec<f64>>) -> Row {
    match times {
        Some(times) => row.peer(peer, &times),
        None => row,
    }
}
