//! Live fork: running copies of a running sandbox.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forkyard_guest::proto::{InitBody, Setup, Source, TakeReport};
use forkyard_sys::channel;

use super::Engine;
use super::create::{Maker, Ready, Site};
use crate::account::{Account, Room};
use crate::base::{BASES_MAX, Base};
use crate::error::{Error, Result};
use crate::model::{Fork, ForkReport, ForkSpec, Phase, Sandbox, SandboxId, State};
use crate::sandbox::{Internal, LiveSandbox, Turn};
use crate::spawner::{Taken, Taking, Template};

/// Most clones of one request.
const CLONES_MAX: u32 = 1000;

impl Engine {
    /// Makes running copies of a running sandbox: its processes, their memory and its files. All
    /// of them, or none.
    pub async fn fork(self: &Arc<Self>, live: &Arc<LiveSandbox>, spec: ForkSpec) -> Result<Fork> {
        let count = spec.count.unwrap_or(1);
        if !(1..=CLONES_MAX).contains(&count) {
            let what = format!("number of clones: {count} is not between 1 and {CLONES_MAX}");
            return Err(Error::Invalid(what));
        }
        let names = names(spec.name.as_deref(), count)?;
        Self::can_stop(live)?;
        let begun = Instant::now();
        let mut alone = live.template_turn().await;
        let turn = live.transition.lock().await;
        if live.state() != State::Running {
            return Err(live.wrong_state());
        }
        self.settle_seal(live, None).await?;
        let files = Places {
            copies: self.layout.new_template()?,
            layers: self.layout.new_base(),
            seal: self.layout.new_base(),
        };
        let known = live.internal().bases.into_iter().map(|base| base.dir);
        let bases = known.chain([files.layers.clone(), files.seal.clone()]).collect();
        let _hold = self.hold_bases(bases);
        let mut names = names.into_iter();
        // What a terminal's line editor holds is taken out and put back: nobody types meanwhile.
        let typing = live.typing.write().await;
        let kept = alone.template();
        let was_kept = kept.is_some();
        let taking = self.begin_take(live, kept, &files, (count, true)).await;
        let result = match taking {
            Ok(taking) => {
                // While the template works: who was told so far may have been woken behind this
                // thread, on its processor.
                std::thread::yield_now();
                let expected = self.expect_clone(live, None, names.next().flatten()).await;
                let taken = match taking.finish().await {
                    // One that was killed while it was kept may be known to be so later yet.
                    Err(Error::Io { .. }) if was_kept => self.take_anew(live, &files, count).await,
                    taken => taken,
                };
                let settled = self.settle_seal(live, Some(&files.seal)).await;
                let taken = settled.and(taken);
                let bases = live.internal().bases;
                drop((typing, turn));
                if let Some(account) = taken.as_ref().ok().and_then(|t| t.template.account()) {
                    account.unbound(&self.cgroups);
                }
                let copied = taken.as_ref().ok().and_then(|taken| files.copied(&taken.report));
                let bases = copied.into_iter().chain(bases).collect();
                let lasts = taken.as_ref().is_ok_and(|taken| taken.report.lasting > 0);
                let keep = Some(alone).filter(|_| lasts);
                self.make_all((live, bases), begun, (taken, keep), expected, names).await
            }
            Err(error) => Err(error),
        };
        self.layout.discard(&files.copies)?;
        self.trash.sweep();
        result
    }

    /// Has a template begin to take a sandbox's picture: the one that took the last, or another.
    async fn begin_take(
        &self,
        live: &LiveSandbox,
        kept: Option<Template>,
        files: &Places,
        (clones, may_seal): (u32, bool),
    ) -> Result<Taking> {
        let room = Room::beside(live)?;
        let (holder, theirs) = channel::pair().map_err(Error::io("socketpair"))?;
        live.ask(InitBody::Hold, &[std::os::fd::AsFd::as_fd(&theirs)]).await?;
        drop(theirs);
        let internal = live.internal();
        let uppers = self.layout.sandbox(live.id()).join(internal.generation_name());
        // Each fork may add both.
        let has_room = internal.bases.len() + 2 <= BASES_MAX;
        let source = Source {
            init: live.info().pid.ok_or_else(|| Error::Gone(live.id().to_string()))?,
            ids: self.mode.ids(internal.slot),
            uppers: uppers.to_string_lossy().into_owned(),
            into: files.copies.to_string_lossy().into_owned(),
            base: has_room.then(|| files.layers.to_string_lossy().into_owned()),
            seal: (has_room && may_seal).then(|| files.seal.to_string_lossy().into_owned()),
            layers: crate::base::layers_of_root(&internal),
        };
        // One that was killed is known to be so late, and one may have no room any more.
        if let Some(template) = kept
            && self.gives_room(&template, room)
            && let Ok(taking) = template.take(source.clone(), Some(clones), &holder).await
        {
            return Ok(taking);
        }
        let account = room.and_then(|room| {
            let opened = Account::open(&self.cgroups, live, room);
            // What was refused above is as much as can be without one.
            opened.inspect_err(|error| tracing::warn!(%error, "making a template's group")).ok()
        });
        live.set_account(account.as_ref());
        self.spawner.template(account).await?.take(source, Some(clones), &holder).await
    }

    /// Has another template take a picture from nothing. The one that died may have made a layer of
    /// what the sandbox wrote: it is in its place then, and taken.
    async fn take_anew(&self, live: &LiveSandbox, files: &Places, clones: u32) -> Result<Taken> {
        self.settle_seal(live, Some(&files.seal)).await?;
        self.begin_take(live, None, files, (clones, false)).await?.finish().await
    }

    /// Gives the template of the last picture room for the next one.
    fn gives_room(&self, template: &Template, room: Option<Room>) -> bool {
        match (template.account(), room) {
            (Some(account), Some(room)) => account.bound(&self.cgroups, room).is_ok(),
            (None, None) => true,
            _ => false,
        }
    }

    /// Makes the clones, the first of which is expected, from what was taken.
    async fn make_all(
        self: &Arc<Self>,
        (source, bases): (&Arc<LiveSandbox>, Vec<Base>),
        begun: Instant,
        (taken, keep): (Result<Taken>, Option<Turn>),
        expected: Result<Expected>,
        names: impl Iterator<Item = Option<String>>,
    ) -> Result<Fork> {
        let took = begun.elapsed();
        match (taken, expected) {
            (Ok(Taken { template, setup, report }), Ok(expected)) => {
                let from = (template, keep, &setup);
                let made = self.make_clones((source, bases), from, expected, names).await;
                made.map(|(clones, first)| Fork {
                    clones,
                    report: fork_report(begun, took, report, first),
                })
            }
            (Err(error), Ok(Expected { live, site })) => {
                // Who undoes it asks at its socket whether there is an init.
                drop(site);
                Err(self.undo(&live, error).await)
            }
            (_, Err(error)) => Err(error),
        }
    }

    async fn make_clones(
        self: &Arc<Self>,
        (source, bases): (&Arc<LiveSandbox>, Vec<Base>),
        (template, keep, setup): (Template, Option<Turn>, &Setup),
        first: Expected,
        names: impl Iterator<Item = Option<String>>,
    ) -> Result<(Vec<Sandbox>, First)> {
        let start = Instant::now();
        let mut begun: Vec<(Arc<LiveSandbox>, Option<Ready>)> = Vec::new();
        let mut failed = None;
        // Until now, nobody knew of it.
        first.live.change_in_memory(|_, internal| internal.bases.clone_from(&bases));
        let mut next = Some(Ok(first));
        let mut names = names;
        while let Some(expected) = next.take() {
            let begin = async { self.begin_clone(expected?, &template, setup).await };
            match begin.await {
                Ok((live, ready)) => begun.push((live, Some(ready))),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
            if let Some(name) = names.next() {
                next = Some(self.expect_clone(source, Some(&bases), name).await);
            }
        }
        // Whatever changes in its memory from now on is in no clone any more.
        if let Some(turn) = keep.filter(|_| failed.is_none()) {
            source.keep_template(turn, template).await;
        }
        let mut first = First::default();
        for (live, ready) in &mut begun {
            if let Some(ready) = ready.take().filter(|_| failed.is_none()) {
                failed = self.finish_clone(live, ready).await.err();
            }
            if first.parts.is_empty() {
                first = First { running: start.elapsed(), parts: live.rebuilt() };
            }
        }
        match failed {
            None => Ok((begun.iter().map(|(live, _)| live.info()).collect(), first)),
            Some(mut error) => {
                for (live, _) in &begun {
                    error = self.undo(live, error).await;
                }
                Err(error)
            }
        }
    }

    async fn finish_clone(&self, live: &LiveSandbox, ready: Ready) -> Result<()> {
        self.finish_inner(live, ready).await?;
        live.take_up_commands().await
    }

    /// Writes a clone down and makes its place, before it is known what it will be.
    async fn expect_clone(
        self: &Arc<Self>,
        source: &LiveSandbox,
        bases: Option<&[Base]>,
        name: Option<String>,
    ) -> Result<Expected> {
        let (id, slot) = (SandboxId::new(), self.reserve_slot()?);
        if let Some(name) = &name
            && let Err(error) = self.take_name(&id, name).await
        {
            self.release_slot(slot);
            return Err(error);
        }
        let parent = source.info();
        let mut internal =
            Internal { slot, generation: 1, group: None, oom_kills: 0, ..source.internal() };
        internal.ephemeral = false;
        if let Some(bases) = bases {
            internal.bases = bases.to_vec();
        }
        let state = |id| self.layout.sandbox(id).to_string_lossy().into_owned();
        let of_source = state(&parent.id);
        let states = internal.sources.iter_mut().filter(|mount| mount.path == of_source);
        states.for_each(|mount| mount.path = state(&id));
        let mut spec = parent.spec;
        spec.name.clone_from(&name);
        let sandbox = Sandbox::creating(id, parent.image, Some(parent.id), spec);
        let live = self.register(sandbox, internal)?;
        match self.lay_out(&live, None) {
            Ok(site) => Ok(Expected { live, site }),
            Err(error) => Err(self.undo(&live, error).await),
        }
    }

    async fn begin_clone(
        self: &Arc<Self>,
        expected: Expected,
        template: &Template,
        setup: &Setup,
    ) -> Result<(Arc<LiveSandbox>, Ready)> {
        let Expected { live, site } = expected;
        let info = live.info();
        let mut setup = setup.clone();
        setup.id = info.id.to_string();
        setup.hostname = info.name.unwrap_or_else(|| info.id.to_string());
        setup.generation = live.internal().generation_name();
        setup.deadline = info.deadline;
        match self.spawn(&live, site, setup, Maker::Template(template)).await {
            Ok(ready) => Ok((live, ready)),
            Err(error) => Err(self.undo(&live, error).await),
        }
    }
}

/// Where copies of a sandbox's files go.
struct Places {
    /// Those for the last clone, and for the others to be copied again.
    copies: PathBuf,
    /// Those that all of them share.
    layers: PathBuf,
    /// What all of them and the original share of what it wrote.
    seal: PathBuf,
}

impl Places {
    /// The base that clones have and their original has not, where there is one.
    fn copied(&self, report: &TakeReport) -> Option<Base> {
        let overlays = report.shared.clone();
        (!overlays.is_empty()).then(|| Base { dir: self.layers.clone(), overlays })
    }
}

/// A clone that is written down, and where it comes.
struct Expected {
    live: Arc<LiveSandbox>,
    site: Site,
}

/// Names of clones: PREFIX-1, PREFIX-2 ..., or PREFIX itself where there is one.
fn names(prefix: Option<&str>, count: u32) -> Result<Vec<Option<String>>> {
    let Some(prefix) = prefix else { return Ok(vec![None; count as usize]) };
    let names: Vec<String> = match count {
        1 => vec![prefix.to_owned()],
        count => (1..=count).map(|n| format!("{prefix}-{n}")).collect(),
    };
    names.iter().try_for_each(|name| crate::check::name(name))?;
    Ok(names.into_iter().map(Some).collect())
}

/// How the first clone came to be.
#[derive(Default)]
struct First {
    running: Duration,
    parts: Vec<(String, u64)>,
}

fn fork_report(begun: Instant, taken: Duration, report: TakeReport, first: First) -> ForkReport {
    let [processes, threads, files] = report.counts;
    let us = |time: Duration| time.as_micros() as u64;
    let phases = |parts: Vec<(String, u64)>| {
        parts.into_iter().map(|(name, us)| Phase { name, us }).collect()
    };
    ForkReport {
        stopped_us: report.stopped_us,
        taken_us: us(taken),
        running_us: us(taken + first.running),
        total_us: us(begun.elapsed()),
        stop: phases(report.parts),
        build: phases(first.parts),
        memory: report.memory,
        processes,
        threads,
        files,
    }
}
