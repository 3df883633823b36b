//! Filling pages as huge ones, without a mark that says so.

use std::io;

use super::Pages;
use crate::userfault;

/// Length of a huge page, and what it is a multiple of.
pub const HUGE: u64 = 2 * 1024 * 1024;

/// So much, in bytes, takes longer to fill than a thread to start.
const LONG: u64 = 8 * HUGE;

impl Pages {
    /// Reads memory of a process into these pages by `fill`, as [`Pages::fill`] does for one part, by
    /// huge pages where the kernel can: `here` and `length` are multiples of [`HUGE`], and nothing
    /// was written there before. From `scratch` on, `length` bytes of address space are free.
    ///
    /// A huge page takes one fault, not five hundred. Only an area that was advised to use them
    /// gets them, and the advice cannot be taken back: so they are made elsewhere and moved here,
    /// which `UFFDIO_MOVE` (Linux 6.8) does without a copy.
    ///
    /// # Errors
    /// As `fill`.
    pub fn fill_huge(
        &mut self,
        (there, here, length): (u64, u64, u64),
        scratch: u64,
        fill: impl Fn(&mut Self, &[(u64, u64, u64)]) -> io::Result<()> + Sync,
    ) -> io::Result<()> {
        if !(here | length | scratch).is_multiple_of(HUGE) || self.within(here, length).is_err() {
            return fill(self, &[(there, here, length)]);
        }
        let Ok(move_pages) = userfault::Mover::to(here, length) else {
            return fill(self, &[(there, here, length)]);
        };
        let mut made = Self::map(scratch, length, false)?;
        // Without them it is slower.
        let _ = made.advise(scratch, length, libc::MADV_HUGEPAGE);
        let filled = made.fill_by_two(there, &fill);
        let moved = filled.and_then(|()| move_pages.from(&mut made));
        drop(move_pages);
        made.unmap()?;
        match moved {
            Ok(()) => Ok(()),
            Err(_) => fill(self, &[(there, here, length)]),
        }
    }

    /// Fills all of these pages from there on, by two threads if that is worth it. `fill` may be
    /// called by any.
    fn fill_by_two(
        &mut self,
        there: u64,
        fill: &(impl Fn(&mut Self, &[(u64, u64, u64)]) -> io::Result<()> + Sync),
    ) -> io::Result<()> {
        let (start, length) = (self.start, self.length);
        if length < LONG {
            return fill(self, &[(there, start, length)]);
        }
        let half = length / 2 / HUGE * HUGE;
        // The same pages as two values. Nobody uses them as one meanwhile.
        let mut first = Self { start, length: half };
        let mut second = Self { start: start + half, length: length - half };
        let rest = [(there + half, second.start, second.length)];
        std::thread::scope(|scope| {
            let other = std::thread::Builder::new();
            let other = other.spawn_scoped(scope, || fill(&mut second, &rest));
            let filled = fill(&mut first, &[(there, start, half)]);
            match other {
                Ok(other) => {
                    let lost = |_| Err(io::ErrorKind::BrokenPipe.into());
                    filled.and(other.join().unwrap_or_else(lost))
                }
                Err(_) => filled.and_then(|()| fill(self, &rest)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_by_huge_pages_is_all_there_and_carries_no_mark() {
        let length = LONG + HUGE;
        let mut source = Pages::map(0x4400_0000_0000, length, false).unwrap();
        let mut target = Pages::map(0x4500_0000_0000, length + HUGE, false).unwrap();
        let bytes: Vec<u8> = (0..length).map(|n| (n / 4096 + n % 251) as u8).collect();
        source.write(source.start(), &bytes).unwrap();
        let part = (source.start(), target.start() + HUGE, length);
        let own = rustix::process::getpid();
        target.fill_huge(part, 0x4600_0000_0000, |pages, parts| pages.fill(own, parts)).unwrap();
        let mut back = vec![0; length as usize];
        let mut to = [std::io::IoSliceMut::new(&mut back)];
        let from = [(target.start() + HUGE, length as usize)];
        crate::remote::read_memory(rustix::process::getpid(), &from, &mut to).unwrap();
        assert!(back == bytes);
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with("4500"));
        let flags = lines.find(|line| line.starts_with("VmFlags")).unwrap();
        assert!(!flags.contains("hg") && !flags.contains("um"), "{flags}");
        source.unmap().unwrap();
        target.unmap().unwrap();
    }
}
