//! A second thread: it reads what takes no tracer, while the first one asks processes.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use forkyard_sys::memory::Pages;
use forkyard_sys::{signal, system_v};
use rustix::process::Pid;

use super::memory::Source;
use crate::error::{Context, Error, Result};
use crate::filled::Own;
use crate::proc::{self, Mapping};

/// What a process has mapped, and which pages of that are its own.
pub(super) type Space = (Vec<Mapping>, Own);

/// Addresses there and here, and lengths.
pub(super) type Parts = Vec<(u64, u64, u64)>;

/// Processes whose spaces nobody reads yet.
type Queue = Arc<Mutex<VecDeque<Pid>>>;

enum Job {
    Spaces(Queue),
    Fill(Pid, Pages, Parts),
}

enum Done {
    Space(Pid, Result<Space>),
    Filled(Pages, Result<()>),
}

/// What reads for a picture.
///
/// When it is dropped, the thread is gone.
pub(super) struct Reader {
    thread: Option<Thread>,
    /// What the first thread has done itself.
    own: VecDeque<Done>,
    /// How much was begun and not waited for.
    begun: usize,
}

struct Thread {
    jobs: Sender<Job>,
    done: Receiver<Done>,
    handle: JoinHandle<()>,
}

impl Reader {
    /// Starts it, with a second thread if that is worth it.
    pub(super) fn start(with_thread: bool) -> Self {
        // What the first thread waits for must not be taken by the second.
        let may_start = with_thread && signal::set_blocked(true).is_ok();
        let thread = may_start.then(Thread::start).and_then(io::Result::ok);
        // To have started one, this has a list of what it will take back of semaphores: processes
        // are compared with it.
        let _ = system_v::drop_adjustments();
        Self { thread, own: VecDeque::new(), begun: 0 }
    }

    /// Reads what these processes have mapped, both threads one after the other of them.
    pub(super) fn spaces(&mut self, pids: &[Pid]) -> Result<Vec<(Pid, Space)>> {
        let queue: Queue = Arc::new(Mutex::new(pids.iter().copied().collect()));
        if let Some(thread) = self.thread.as_ref().filter(|_| pids.len() > 1) {
            // One that does not live leaves all of them to this one.
            let _ = thread.jobs.send(Job::Spaces(Arc::clone(&queue)));
        }
        work(Job::Spaces(queue), |done| self.own.push_back(done));
        let space = |_| match self.next()? {
            Done::Space(pid, space) => Ok((pid, space?)),
            Done::Filled(..) => Err(lost()),
        };
        pids.iter().map(space).collect()
    }

    /// Has pages filled from a process.
    pub(super) fn fill(&mut self, pid: Pid, pages: Pages, parts: Parts) {
        self.begun += 1;
        let job = Job::Fill(pid, pages, parts);
        let left = match &self.thread {
            Some(thread) => thread.jobs.send(job).err().map(|error| error.0),
            None => Some(job),
        };
        if let Some(job) = left {
            work(job, |done| self.own.push_back(done));
        }
    }

    /// Waits for all that is being filled.
    pub(super) fn filled(&mut self) -> Result<Vec<Pages>> {
        let mut all = Vec::with_capacity(self.begun);
        let mut result = Ok(());
        while self.begun > 0 {
            let done = self.next()?;
            self.begun -= 1;
            if let Done::Filled(pages, filled) = done {
                all.push(pages);
                result = result.and(filled);
            }
        }
        if result.is_err() {
            all.drain(..).try_for_each(Pages::unmap).context(|| "munmap".to_owned())?;
        }
        result.map(|()| all)
    }

    fn next(&mut self) -> Result<Done> {
        if let Some(done) = self.own.pop_front() {
            return Ok(done);
        }
        let thread = self.thread.as_ref().ok_or_else(lost)?;
        thread.done.recv().map_err(|_| lost())
    }
}

impl Thread {
    fn start() -> io::Result<Self> {
        let (jobs, todo) = channel::<Job>();
        let (results, done) = channel();
        let work_all = move || {
            // Who does not want it any more is gone.
            let tell = |done| drop(results.send(done));
            for job in todo {
                work(job, tell);
            }
        };
        let handle = std::thread::Builder::new().name("reader".to_owned()).spawn(work_all)?;
        Ok(Self { jobs, done, handle })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut left: Vec<Done> = self.own.drain(..).collect();
        if let Some(Thread { jobs, done, handle }) = self.thread.take() {
            drop(jobs);
            let _ = handle.join();
            left.extend(done.try_iter());
        }
        // Of a try that failed.
        for done in left {
            if let Done::Filled(pages, _) = done {
                let _ = pages.unmap();
            }
        }
    }
}

fn work(job: Job, mut tell: impl FnMut(Done)) {
    match job {
        Job::Spaces(queue) => loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(pid) = next else { return };
            let space = proc::mappings(pid).and_then(|all| Ok((all, Own::read(pid)?)));
            tell(Done::Space(pid, space));
        },
        Job::Fill(pid, mut pages, parts) => {
            let filled = Source::Readable(pid).fill(&mut pages, &parts);
            tell(Done::Filled(pages, filled));
        }
    }
}

fn lost() -> Error {
    Error::Failed { what: "reading memory".to_owned(), source: io::ErrorKind::BrokenPipe.into() }
}

#[cfg(test)]
mod tests {
    use forkyard_sys::remote::read_memory;
    use rustix::process::getpid;

    use super::*;

    const PAGE: u64 = 4096;

    #[test]
    fn one_thread_reads_what_two_do() {
        for (with_thread, at) in [(false, 0x4700_0000_0000), (true, 0x4800_0000_0000)] {
            let mut reader = Reader::start(with_thread);
            let spaces = reader.spaces(&[getpid(), getpid()]).unwrap();
            assert_eq!(spaces.len(), 2);
            assert!(spaces.iter().all(|(_, (all, _))| all.iter().any(|it| it.name == b"[vdso]")));
            let source: Vec<u8> = (0..PAGE).map(|n| n as u8).collect();
            for n in 0..2 {
                let start = at + n * 16 * PAGE;
                let pages = Pages::map(start, PAGE, false).unwrap();
                reader.fill(getpid(), pages, vec![(source.as_ptr() as u64, start, PAGE)]);
            }
            for pages in reader.filled().unwrap() {
                let mut bytes = vec![0; PAGE as usize];
                let mut to = [io::IoSliceMut::new(&mut bytes)];
                read_memory(getpid(), &[(pages.start(), PAGE as usize)], &mut to).unwrap();
                assert!(bytes == source);
                pages.unmap().unwrap();
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_leaves_nothing_mapped() {
        let at = 0x4900_0000_0000;
        for with_thread in [false, true] {
            let mut reader = Reader::start(with_thread);
            let pages = Pages::map(at, PAGE, false).unwrap();
            reader.fill(getpid(), pages, vec![(8, at, PAGE)]);
            assert!(reader.filled().is_err());
            // Not waited for.
            let pages = Pages::map(at, PAGE, false).unwrap();
            reader.fill(getpid(), pages, vec![(8, at, PAGE)]);
            drop(reader);
            Pages::map(at, PAGE, false).unwrap().unmap().unwrap();
        }
    }
}
