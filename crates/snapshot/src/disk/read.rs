//! Reading a snapshot: all of it is checked before anything is made of it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crc32fast::Hasher;
use rustix::process::getpid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::{Context, Error, Result, damaged};
use super::header::{HEADER_MAX, Header, Part};
use super::host::Host;
use super::{FILES, HEADER, Mark, PAGES, PICTURE, Saved, check, tree};
use crate::capture::Taken;
use crate::files::is_shareable;
use crate::picture::{Area, AreaKind, Body, Picture};
use crate::proc;
use crate::stage::{Plan, Stage, dress};
use crate::times::Times;

/// Bytes of pages that are read at once: they are summed while they are in the processor's cache.
const CHUNK: usize = 256 * 1024;

/// No picture is longer, in bytes: it has no pages, but what was unread in pipes.
const PICTURE_MAX: u64 = 1 << 30;

/// A snapshot that can go on here.
#[derive(Debug)]
pub struct Read<R> {
    /// What it says of itself.
    pub header: Header,
    /// Picture, memory, the files that its processes have mapped, and what else was written.
    pub memory: Option<(Taken, Vec<Mark>, R)>,
    /// What of its files is large: a layer that many can share, rather than each having a copy.
    pub layers: Vec<Layer>,
    /// How long its parts took.
    pub times: Times,
}

/// Something in a snapshot's files that many can share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Its name in the directory of files.
    pub name: String,
    /// Names, in it, of what each must have for itself: see [`crate::copy_above`].
    pub linked: Vec<Vec<u8>>,
}

/// Reads a snapshot into the memory of this process. `ids` must be what it was written with. Layers
/// that are `known`, since it was read before and nobody may write to it, are not read again.
///
/// # Errors
/// [`Error::Damaged`], or [`Error::Unfit`] with the reason. Some memory may have been taken by
/// then, which goes with this process.
pub fn read<R: DeserializeOwned>(dir: &Path, ids: &str, known: Vec<Layer>) -> Result<Read<R>> {
    let mut times = Times::start();
    let header = read_header(dir)?;
    if header.ids != ids {
        return Err(Error::Unfit(format!(
            "its files belong to ids of the kind `{}`, and this server has `{ids}`",
            header.ids
        )));
    }
    if let Some(host) = &header.host {
        host.fits(&Host::this()?)?;
    }
    times.mark("header");
    let memory = match (header.picture, header.pages) {
        (Some(picture), Some(pages)) => {
            let saved = parse(&read_part(dir, picture)?)?;
            times.mark("picture");
            let taken = read_pages(dir, pages, saved.picture, &saved.plan)?;
            times.mark("pages");
            Some((taken, saved.marks, saved.records))
        }
        (None, None) => None,
        _ => return Err(damaged("a part of it is missing")),
    };
    let layers = read_files(dir, &header, known)?;
    times.mark("files");
    Ok(Read { header, memory, layers, times })
}

/// Checks the files; the layers among them.
fn read_files(dir: &Path, header: &Header, known: Vec<Layer>) -> Result<Vec<Layer>> {
    let files = dir.join(FILES);
    let failed = || format!("reading {}", files.display());
    let mut layers = known;
    if !tree::names(&files).context(failed)?.iter().eq(header.files.keys()) {
        return Err(damaged("its files are not those that were written"));
    }
    for (name, part) in &header.files {
        if layers.iter().any(|layer| layer.name == *name) {
            continue;
        }
        let read = tree::sum(&files, name, &|| true).context(failed)?;
        if read.part != *part {
            return Err(damaged("its files are not those that were written"));
        }
        if is_shareable(part.entries, part.length, &read.linked) {
            layers.push(Layer { name: name.clone(), linked: read.linked });
        }
    }
    Ok(layers)
}

/// Reads what a snapshot says of itself.
pub fn read_header(dir: &Path) -> Result<Header> {
    let path = dir.join(HEADER);
    let failed = || format!("reading {}", path.display());
    let file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(damaged("it has no header"));
        }
        file => file.context(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(HEADER_MAX).read_to_end(&mut bytes).context(failed)?;
    Header::parse(&bytes)
}

/// Reads the part `picture` from its bytes, and checks that it makes sense.
pub(super) fn parse<R: DeserializeOwned>(bytes: &[u8]) -> Result<Saved<Picture, R>> {
    let saved: Saved<Picture, R> = ciborium::from_reader(bytes)
        .map_err(|error| damaged(format!("its picture cannot be read: {error}")))?;
    check::check(&saved)?;
    Ok(saved)
}

fn read_part(dir: &Path, part: Part) -> Result<Vec<u8>> {
    let file = open(dir, PICTURE, part)?;
    if part.length > PICTURE_MAX {
        return Err(damaged("its picture is too long"));
    }
    let mut bytes = vec![0; part.length as usize];
    file.read_exact_at(&mut bytes, 0).context(|| "reading its picture".to_owned())?;
    if crc32fast::hash(&bytes) == part.checksum {
        Ok(bytes)
    } else {
        Err(damaged("the checksum of its picture is wrong"))
    }
}

/// Opens a part, which has the length that the header says.
fn open(dir: &Path, name: &str, part: Part) -> Result<File> {
    let path = dir.join(name);
    let failed = || format!("reading {}", path.display());
    let file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(damaged(format!("it has no {name}")));
        }
        file => file.context(failed)?,
    };
    let meta = file.metadata().context(failed)?;
    if meta.is_file() && meta.len() == part.length {
        Ok(file)
    } else {
        Err(damaged(format!("its {name} has not the length that was written")))
    }
}

fn read_pages(dir: &Path, part: Part, mut picture: Picture, plan: &Plan) -> Result<Taken> {
    let file = open(dir, PAGES, part)?;
    let all = plan.mirrors.iter().flat_map(|mirror| &mirror.filled);
    if all.map(|(_, length)| length).sum::<u64>() != part.length {
        return Err(damaged("its pages are not those of its picture"));
    }
    let used = proc::mappings(getpid())?;
    let used = used.iter().map(|area| (area.start, area.end)).collect();
    let mut stage = Stage::again(plan, used, &picture)?;
    let shift = stage.shift(plan);
    picture.follow(shift);
    let areas = mirrored(&picture);
    let failed = || "reading its pages".to_owned();
    let (mut hasher, mut buffer) = (Hasher::new(), vec![0; CHUNK]);
    let mut offset = 0;
    for mirror in &plan.mirrors {
        let start = mirror.start.wrapping_add(shift.mirrors);
        let area = areas.get(&start).copied();
        let grows = area.is_some_and(|area| area.flags.contains(b"gd"));
        let mut pages = Stage::map_again(start, mirror.length, grows)?;
        let mut filled = 0;
        for &(at, length) in &mirror.filled {
            let at = at.wrapping_add(shift.mirrors);
            pages.populate(at, length);
            let mut done = 0;
            while done < length {
                let count = (CHUNK as u64).min(length - done);
                let chunk = buffer.get_mut(..count as usize).unwrap_or_default();
                file.read_exact_at(chunk, offset).context(failed)?;
                hasher.update(chunk);
                pages.write(at + done, chunk).context(failed)?;
                done += count;
                offset += count;
            }
            filled += length;
        }
        if let Some(area) = area {
            dress(&mut pages, &area.flags, area.protection)?;
        }
        stage.keep(pages, filled);
    }
    stage.close(plan);
    if hasher.finalize() != part.checksum {
        return Err(damaged("the checksum of its pages is wrong"));
    }
    Ok(Taken { picture, stage, times: Times::default() })
}

/// Mappings by where their mirrors begin.
fn mirrored(picture: &Picture) -> HashMap<u64, &Area> {
    let alive = picture.processes.iter().filter_map(|process| match &process.body {
        Body::Alive(alive) => Some(alive),
        Body::Zombie(_) => None,
    });
    let areas = alive.flat_map(|alive| &alive.memory.areas);
    let mirrored = areas.filter_map(|area| match area.kind {
        AreaKind::Anonymous { staged: Some(at) } => Some((at, area)),
        _ => None,
    });
    mirrored.collect()
}
