//! What of a host running processes rely on.

use std::io::Read as _;

use rustix::process::getpid;
use serde::{Deserialize, Serialize};

use super::error::{Context, Error, Result};
use crate::proc;

/// `AT_MINSIGSTKSZ` of linux/auxvec.h: room for a signal frame, which holds all vector registers.
const SIGNAL_FRAME: u64 = 51;

/// How much of /proc/cpuinfo is read: one processor of it.
const ONE_PROCESSOR: u64 = 16 * 1024;

/// The kernel and the processor that a picture was taken on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// `uname -r`
    pub release: String,
    /// `uname -v`: which build of it.
    pub build: String,
    /// `uname -m`
    pub machine: String,
    /// Bytes of the kernel's own code and data in each process.
    pub vdso: u64,
    /// Who made the processor.
    pub vendor: String,
    /// What it can do, as /proc/cpuinfo has it.
    pub features: Vec<String>,
    /// Bytes of a signal frame with all vector registers that the kernel uses.
    pub signal_frame: u64,
}

impl Host {
    /// This one.
    pub fn this() -> Result<Self> {
        let name = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        let kernels = proc::mappings(getpid())?;
        let kernels = kernels.iter().filter(|area| area.name.starts_with(b"[v"));
        let mut cpu = Vec::new();
        std::fs::File::open("/proc/cpuinfo")
            .and_then(|file| file.take(ONE_PROCESSOR).read_to_end(&mut cpu))
            .context(|| "reading /proc/cpuinfo".to_owned())?;
        let cpu = String::from_utf8_lossy(&cpu).into_owned();
        let line = |name: &str| {
            let of = |line: &str| {
                let (key, value) = line.split_once(':')?;
                (key.trim_end() == name).then(|| value.trim().to_owned())
            };
            cpu.lines().find_map(of).unwrap_or_default()
        };
        let mut features: Vec<_> = line("flags").split(' ').map(str::to_owned).collect();
        features.sort_unstable();
        Ok(Self {
            release: text(name.release()),
            build: text(name.version()),
            machine: text(name.machine()),
            vdso: kernels.map(|area| area.end - area.start).sum(),
            vendor: line("vendor_id"),
            features,
            signal_frame: signal_frame(&proc::read(getpid(), "auxv")?),
        })
    }

    /// Whether what ran on `self` goes on, on `here`.
    pub(super) fn fits(&self, here: &Self) -> Result<()> {
        let unfit = |what: String| Err(Error::Unfit(what));
        if (&self.release, &self.build) != (&here.release, &here.build) {
            return unfit(format!(
                "it was taken on Linux {} ({}), and this is Linux {} ({})",
                self.release, self.build, here.release, here.build
            ));
        }
        if (&self.machine, &self.vendor) != (&here.machine, &here.vendor) {
            return unfit(format!(
                "it was taken on a processor {} of {}, and this is {} of {}",
                self.machine, self.vendor, here.machine, here.vendor
            ));
        }
        if let Some(missing) = self.features.iter().find(|one| !here.features.contains(one)) {
            return unfit(format!("this processor lacks {missing}, which its programs may use"));
        }
        if self.signal_frame != here.signal_frame {
            return unfit(format!(
                "vector registers take {} bytes there, and {} here",
                self.signal_frame, here.signal_frame
            ));
        }
        if self.vdso != here.vdso {
            return unfit(format!(
                "the kernel's own code in processes takes {} bytes there, and {} here",
                self.vdso, here.vdso
            ));
        }
        Ok(())
    }
}

/// A value of a process's auxiliary vector, see getauxval(3); 0 where it is not there.
fn signal_frame(auxv: &[u8]) -> u64 {
    let words =
        auxv.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap_or([0; 8])));
    let words: Vec<u64> = words.collect();
    let found = words.chunks_exact(2).find(|pair| pair.first() == Some(&SIGNAL_FRAME));
    found.and_then(|pair| pair.get(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Something that is another elsewhere, and what is said of it.
    type Change<'a> = (&'a dyn Fn(&mut Host), &'a str);

    #[test]
    fn only_a_host_that_can_do_as_much_will_do() {
        let here = Host::this().unwrap();
        assert!(here.signal_frame > 512 && here.vdso > 0 && here.features.len() > 20, "{here:?}");
        here.fits(&here).unwrap();
        let fits = |change: &dyn Fn(&mut Host)| {
            let mut other = here.clone();
            change(&mut other);
            other.fits(&here).map_err(|error| error.to_string())
        };
        fits(&|other| drop::<Option<String>>(other.features.pop())).unwrap();
        let changes: [Change<'_>; 6] = [
            (&|other| other.release.push('x'), "taken on Linux"),
            (&|other| other.build.push('x'), "taken on Linux"),
            (&|other| other.vendor.push('x'), "taken on a processor"),
            (&|other| other.features.push("avx9".to_owned()), "lacks avx9"),
            (&|other| other.signal_frame += 64, "vector registers"),
            (&|other| other.vdso += 4096, "the kernel's own code"),
        ];
        for (change, text) in changes {
            let error = fits(change).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}
