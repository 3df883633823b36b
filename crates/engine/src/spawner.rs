//! The server's side of the spawner: starting it, giving it ids, asking it.

mod disk;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use forkyard_guest::proto::{
    Failure, MountSource, Place, Setup, Source, SpawnerReply, SpawnerRequest, TakeReport, decode,
    encode,
};
use forkyard_sys::{channel, namespace};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::account::Account;
use crate::error::{Error, Result};
use crate::ids::Mode;
use crate::link::Link;

/// How long the end of a template that has nothing to do is waited for.
const END_WAIT: Duration = Duration::from_secs(2);

/// Settings of the C library for the spawner, whose forks are init and templates.
///
/// They give their memory up for that of others: no kernel may write to it then, as it does for
/// restartable sequences, rseq(2). And a template has no time to ask for memory in small pieces, or
/// to give it back, while a sandbox stands still; all of its memory is in one place.
const TUNABLES: &str = "glibc.pthread.rseq=0:glibc.malloc.arena_max=1:\
                        glibc.malloc.top_pad=524288:glibc.malloc.trim_threshold=4194304:\
                        glibc.malloc.mmap_threshold=4194304";

/// The spawner; one that died is replaced by the next request.
#[derive(Debug)]
pub(crate) struct Spawner {
    mode: Mode,
    running: Mutex<Running>,
}

/// A running spawner.
#[derive(Debug)]
struct Running {
    link: Arc<Link<SpawnerReply>>,
    process: Reaped,
    /// Its user namespace, where that is not the server's: in which the next one has to be, too, to
    /// have rights over its sandboxes.
    namespace: Option<OwnedFd>,
}

/// Waited for when it is dropped: it ends as soon as its socket closes.
#[derive(Debug)]
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A sandbox's new init.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
}

impl Running {
    /// Starts this program again as the spawner, in the user namespace of an earlier one if that
    /// is given, and waits until it serves.
    fn start(mode: &Mode, namespace: Option<&OwnedFd>) -> Result<Self> {
        let failed = || Error::io("starting the spawner");
        let (ours, theirs) = channel::pair().map_err(failed())?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("spawner")
            .arg(mode.word())
            .arg(files_of_commands().to_string())
            .env_clear()
            .env("GLIBC_TUNABLES", TUNABLES)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        let process = Reaped(command.spawn().map_err(failed())?);
        drop(command);
        if *mode != Mode::Root {
            let given: Vec<_> = namespace.map(AsFd::as_fd).into_iter().collect();
            channel::send(&ours, b"namespace", &given).map_err(failed())?;
        }
        if let Mode::SubIds { uid, gid } = mode
            && namespace.is_none()
        {
            wait_for_word(&ours)?;
            write_maps(process.0.id(), *uid, *gid)?;
            channel::send(&ours, b"mapped", &[]).map_err(failed())?;
        }
        let namespace = wait_for_word(&ours)?.pop();
        let link = Arc::new(Link::new(ours).map_err(failed())?);
        tokio::spawn(receive(Arc::clone(&link)));
        Ok(Self { link, process, namespace })
    }

    /// Its ids, as this process sees them.
    fn map(&self) -> Result<[String; 2]> {
        let read = |file: &str| {
            let path = format!("/proc/{}/{file}", self.process.0.id());
            std::fs::read_to_string(&path).map_err(Error::io(format!("reading {path}")))
        };
        Ok([read("uid_map")?, read("gid_map")?])
    }

    fn has_ended(&mut self) -> bool {
        self.link.is_closed() || !matches!(self.process.0.try_wait(), Ok(None))
    }
}

async fn receive(link: Arc<Link<SpawnerReply>>) {
    receive_all(&link).await;
    link.close();
}

async fn receive_all(link: &Link<SpawnerReply>) {
    while let Some(message) = link.receive().await {
        let Ok(reply) = decode::<SpawnerReply>(&message.bytes) else { continue };
        let (SpawnerReply::Spawned { seq, .. }
        | SpawnerReply::Failed { seq, .. }
        | SpawnerReply::Taken { seq, .. }
        | SpawnerReply::NotTaken { seq, .. }
        | SpawnerReply::Persisted { seq, .. }
        | SpawnerReply::Paused { seq, .. }
        | SpawnerReply::Restored { seq, .. }
        | SpawnerReply::NotRestored { seq, .. }) = reply;
        link.answer(seq, (reply, message.fds));
    }
}

impl Spawner {
    /// Starts a spawner, and waits until it serves.
    pub(crate) fn start(mode: &Mode) -> Result<Self> {
        Ok(Self { mode: mode.clone(), running: Mutex::new(Running::start(mode, None)?) })
    }

    /// Has the spawner be where the one was that made a sandbox in this user namespace; tells
    /// whether it is. It has no rights over the sandbox otherwise.
    ///
    /// # Errors
    /// When that spawner's namespace is none that a server like this would have made.
    pub(crate) fn join(&self, sandboxs: &OwnedFd) -> Result<()> {
        let failed = || Error::io("looking at the user namespace of an earlier spawner");
        let theirs = namespace::parent(sandboxs).map_err(failed())?;
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(own) = &running.namespace else { return Ok(()) };
        if namespace::are_same(own, &theirs).map_err(failed())? {
            return Ok(());
        }
        // Nobody is led into what a sandbox made: that would be further below.
        let above = namespace::parent(&theirs).map_err(failed())?;
        let server = namespace::own_user().map_err(failed())?;
        let joined = Running::start(&self.mode, Some(&theirs))?;
        let alike = namespace::are_same(above, server).map_err(failed())?
            && joined.map()? == running.map()?;
        if !alike {
            let what = "an earlier spawner had other ids".to_owned();
            return Err(Error::Invalid(what));
        }
        *running = joined;
        Ok(())
    }

    /// The channel to a spawner that lives.
    fn link(&self) -> Result<Arc<Link<SpawnerReply>>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.has_ended() {
            tracing::warn!("the spawner died: starting another");
            *running = Running::start(&self.mode, running.namespace.as_ref())?;
        }
        Ok(Arc::clone(&running.link))
    }

    /// Makes the init of a sandbox. `control` and `listener` are its ends.
    pub(crate) async fn spawn(
        &self,
        place: Place,
        sources: Vec<MountSource>,
        setup: Setup,
        control: OwnedFd,
        listener: &OwnedFd,
    ) -> Result<Spawned> {
        spawn(&*self.link()?, place, sources, setup, control, listener).await
    }

    /// Starts a template, whose memory counts to this account from the first byte.
    pub(crate) async fn template(&self, account: Option<Arc<Account>>) -> Result<Template> {
        let (ours, theirs) = channel::pair().map_err(Error::io("socketpair"))?;
        let (cgroup2, cgroup1) = account.as_deref().map(Account::paths).unwrap_or_default();
        let request = SpawnerRequest::Template { cgroup2, cgroup1 };
        let bytes = encode(&request).map_err(|e| Error::Invalid(e.to_string()))?;
        self.link()?.send(&bytes, &[theirs.as_fd()]).await.map_err(gone)?;
        let link = Arc::new(Link::new(ours).map_err(Error::io("watching a template"))?);
        let (of_template, its_account) = (Arc::clone(&link), account.clone());
        tokio::spawn(async move {
            receive_all(&of_template).await;
            // Known to whoever waits for an answer that does not come.
            if let Some(account) = its_account {
                account.end();
            }
            of_template.close();
        });
        Ok(Template { link, account })
    }

    /// Has an init prepared for the sandbox that will be spawned at this place.
    pub(crate) async fn prepare(&self, place: Place) -> Result<()> {
        let request = SpawnerRequest::Prepare { place };
        let bytes = encode(&request).map_err(|e| Error::Invalid(e.to_string()))?;
        self.link()?.send(&bytes, &[]).await.map_err(gone)
    }

    /// Starts a job in a child of the spawner; its answer comes through the socket given back,
    /// which closes without one when the job dies.
    pub(crate) async fn job(
        &self,
        name: &str,
        payload: Vec<u8>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<OwnedFd> {
        let (ours, theirs) = channel::pair().map_err(Error::io("socketpair"))?;
        let mut all = vec![theirs.as_fd()];
        all.extend_from_slice(fds);
        let request = SpawnerRequest::Job { name: name.to_owned(), payload };
        let bytes = encode(&request).map_err(|e| Error::Invalid(e.to_string()))?;
        self.link()?.send(&bytes, &all).await.map_err(gone)?;
        Ok(ours)
    }
}

/// A process that holds a picture of a sandbox, and makes sandboxes from it; it ends when this is
/// dropped.
#[derive(Debug)]
pub(crate) struct Template {
    link: Arc<Link<SpawnerReply>>,
    account: Option<Arc<Account>>,
}

impl Template {
    /// Begins to take a sandbox's picture. `holder` is the end of a socket to its init; `clones`,
    /// how many are made from it before it may be asked for another one, the last of which has the
    /// copies of its files themselves.
    pub(crate) async fn take(
        self,
        source: Source,
        clones: Option<u32>,
        holder: &OwnedFd,
    ) -> Result<Taking> {
        let request = |seq| SpawnerRequest::Take { seq, source, clones };
        let answer = begin(&self.link, request, &[holder.as_fd()]).await?;
        Ok(Taking { template: self, answer })
    }

    /// Has it let go of all but what another picture of the same sandbox can use.
    pub(crate) async fn keep(&self) -> Result<()> {
        let bytes = encode(&SpawnerRequest::Keep).map_err(|e| Error::Invalid(e.to_string()))?;
        self.link.send(&bytes, &[]).await.map_err(gone)
    }

    /// What its memory counts to.
    pub(crate) fn account(&self) -> Option<&Arc<Account>> {
        self.account.as_ref()
    }

    /// Whether it still serves, as far as is known.
    pub(crate) fn is_alive(&self) -> bool {
        !self.link.is_closed()
    }

    /// Ends it, and waits until nothing is marked for it in the sandbox any more.
    pub(crate) async fn end(self) {
        // One that takes long to go is waited for again by who finds its marks.
        let _ = tokio::time::timeout(END_WAIT, self.link.end()).await;
    }

    /// Makes the init of a clone: as [`Spawner::spawn`].
    pub(crate) async fn spawn(
        &self,
        place: Place,
        sources: Vec<MountSource>,
        setup: Setup,
        control: OwnedFd,
        listener: &OwnedFd,
    ) -> Result<Spawned> {
        spawn(&self.link, place, sources, setup, control, listener).await
    }
}

/// A picture that is being taken.
#[derive(Debug)]
pub(crate) struct Taking {
    template: Template,
    answer: Answer,
}

/// A picture that was taken.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) template: Template,
    pub(crate) setup: Setup,
    pub(crate) report: TakeReport,
}

impl Taking {
    /// Waits until it is taken.
    pub(crate) async fn finish(self) -> Result<Taken> {
        let answer = finish(self.answer).await;
        if answer.is_err()
            && let Some(error) = self.template.account.as_deref().and_then(Account::why)
        {
            return Err(error);
        }
        match answer? {
            (SpawnerReply::Taken { setup, report, .. }, _) => {
                Ok(Taken { template: self.template, setup: *setup, report })
            }
            (SpawnerReply::NotTaken { why, .. }, _) => Err(Error::NotForked(why)),
            _ => Err(confused()),
        }
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        // Its own receiver holds the link, until the other end closes.
        self.link.shut_down();
    }
}

async fn spawn(
    link: &Link<SpawnerReply>,
    place: Place,
    sources: Vec<MountSource>,
    setup: Setup,
    control: OwnedFd,
    listener: &OwnedFd,
) -> Result<Spawned> {
    let fds = [control.as_fd(), listener.as_fd()];
    let setup = Box::new(setup);
    let request = |seq| SpawnerRequest::Spawn { seq, place, sources, setup };
    match ask(link, request, &fds).await? {
        (SpawnerReply::Spawned { pid, .. }, mut fds) if !fds.is_empty() => {
            Ok(Spawned { pid, pidfd: fds.swap_remove(0) })
        }
        _ => Err(confused()),
    }
}

async fn ask(
    link: &Link<SpawnerReply>,
    request: impl FnOnce(u64) -> SpawnerRequest,
    fds: &[BorrowedFd<'_>],
) -> Result<(SpawnerReply, Vec<OwnedFd>)> {
    finish(begin(link, request, fds).await?).await
}

/// What a spawner's answer comes through.
type Answer = tokio::sync::oneshot::Receiver<(SpawnerReply, Vec<OwnedFd>)>;

async fn begin(
    link: &Link<SpawnerReply>,
    request: impl FnOnce(u64) -> SpawnerRequest,
    fds: &[BorrowedFd<'_>],
) -> Result<Answer> {
    let message = |seq| encode(&request(seq)).unwrap_or_default();
    link.request(message, fds).await.map_err(gone)
}

async fn finish(answer: Answer) -> Result<(SpawnerReply, Vec<OwnedFd>)> {
    match answer.await {
        Ok((SpawnerReply::Failed { failure, .. }, _)) => Err(Error::Kernel(failure)),
        Ok(answer) => Ok(answer),
        Err(_) => Err(gone(io::ErrorKind::BrokenPipe.into())),
    }
}

fn gone(source: io::Error) -> Error {
    Error::Io { what: "asking the spawner".to_owned(), source }
}

fn confused() -> Error {
    gone(io::ErrorKind::InvalidData.into())
}

/// The spawner says `ready`, or what failed, before anything else.
fn wait_for_word(socket: &OwnedFd) -> Result<Vec<OwnedFd>> {
    let message = channel::receive(socket).map_err(Error::io("starting the spawner"))?;
    match message {
        Some(message) if message.bytes == b"ready" => Ok(message.fds),
        Some(message) => match decode::<Failure>(&message.bytes) {
            Ok(failure) => Err(Error::Kernel(failure)),
            Err(_) => Err(confused()),
        },
        None => Err(gone(io::ErrorKind::UnexpectedEof.into())),
    }
}

/// How many descriptors a command has at first: as many as whoever started this server. The server
/// itself, and who it starts, may have all that they are allowed.
fn files_of_commands() -> u64 {
    static FILES: OnceLock<u64> = OnceLock::new();
    *FILES.get_or_init(|| {
        let started_with = getrlimit(Resource::Nofile);
        let all = Rlimit { current: started_with.maximum, ..started_with };
        // What cannot be had is missed where it is needed.
        let _ = setrlimit(Resource::Nofile, all);
        started_with.current.unwrap_or(u64::MAX)
    })
}

/// Maps root to this user and the rest to its subordinate ids, by the set-id helpers that may.
fn write_maps(pid: u32, uid: u32, gid: u32) -> Result<()> {
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    for (tool, own, first) in [("newuidmap", own.0, uid), ("newgidmap", own.1, gid)] {
        let mut command = Command::new(tool);
        command.arg(pid.to_string());
        for number in [0, own, 1, 1, first, 65_535] {
            command.arg(number.to_string());
        }
        let output = command.output().map_err(Error::io(format!("running {tool}")))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::Invalid(format!("{tool} for the spawner: {why}")));
        }
    }
    Ok(())
}
