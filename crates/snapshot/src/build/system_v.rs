//! System V objects, made by init with the ids that they had.

use forkyard_sys::memory::Pages;
use forkyard_sys::system_v::{self, DESTROYED, Object};

use super::Home;
use crate::error::{Context, Result};
use crate::picture::{Loose, Picture};
use crate::stage::Stage;

/// Shared memory of a clone until all processes have theirs.
pub(super) struct Segment {
    id: i32,
    destroyed: bool,
    pages: [Pages; 2],
}

impl Segment {
    /// Makes it where the processes will look for it, with its contents.
    pub(super) fn make(
        loose: &Loose,
        object: &Object,
        places: [u64; 2],
        stage: &Stage,
        home: &dyn Home,
    ) -> Result<Self> {
        let failed = || format!("making System V shared memory (id {})", object.id);
        let made = home.next_id("shm", object.id);
        made.and_then(|()| is(object, system_v::make_memory(object, loose.size)?))
            .context(failed)?;
        let length = loose.size.next_multiple_of(4096);
        let [at, read_only] = places;
        let attach = |at, read_only| system_v::attach(object.id, Some(at), length, read_only);
        let mut pages = attach(at, false).context(failed)?;
        for &(offset, length, staged) in &loose.parts {
            pages.populate(at + offset, length);
            stage.copy_to(&mut pages, at + offset, (staged, length))?;
        }
        system_v::own_memory(object).context(failed)?;
        let pages = [pages, attach(read_only, true).context(failed)?];
        Ok(Self { id: object.id, destroyed: object.mode & DESTROYED != 0, pages })
    }

    /// Marks it, when all processes have attached it, if it goes with the last of them.
    pub(super) fn finish(&self) -> Result<()> {
        if self.destroyed {
            system_v::destroy_memory(self.id).context(|| "shmctl IPC_RMID".to_owned())?;
        }
        Ok(())
    }

    /// Lets go of it.
    pub(super) fn release(self) -> Result<()> {
        self.pages.into_iter().try_for_each(Pages::unmap).context(|| "munmap".to_owned())
    }
}

/// Makes semaphores and queues.
pub(super) fn make_all(picture: &Picture, home: &dyn Home) -> Result<()> {
    for semaphores in &picture.semaphores {
        let object = &semaphores.object;
        let make = || {
            home.next_id("sem", object.id)?;
            is(object, system_v::make_semaphores(object, semaphores.values.len() as u32)?)?;
            system_v::own_semaphores(object, &semaphores.values, semaphores.used)
        };
        make().context(|| format!("making System V semaphores (id {})", object.id))?;
    }
    for queue in &picture.queues {
        let object = &queue.object;
        let make = || {
            home.next_id("msg", object.id)?;
            is(object, system_v::make_queue(object)?)?;
            system_v::own_queue(object, queue.capacity)?;
            queue
                .messages
                .iter()
                .try_for_each(|(kind, text)| system_v::send(object.id, *kind, text))
        };
        make().context(|| format!("making a System V message queue (id {})", object.id))?;
    }
    Ok(())
}

/// Whether an object has the id that was wanted.
fn is(object: &Object, id: i32) -> std::io::Result<()> {
    if object.id == id { Ok(()) } else { Err(std::io::ErrorKind::AlreadyExists.into()) }
}
