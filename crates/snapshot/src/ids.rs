//! Users and groups of a sandbox, by the numbers that this process sees for them.

use rustix::process::Pid;

use crate::error::{Result, unreadable};
use crate::proc;

/// The map of a user namespace: first id inside, first id here, and how many.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map(Vec<(u32, u32, u32)>);

impl Map {
    /// A process's `uid_map` or `gid_map`; what is read there is relative to the reader.
    pub(crate) fn read(pid: Pid, file: &str) -> Result<Self> {
        let text = String::from_utf8_lossy(&proc::read(pid, file)?).into_owned();
        Self::parse(&text).ok_or_else(|| unreadable(file))
    }

    fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().map(|line| {
            let mut numbers = line.split_ascii_whitespace().map(|word| word.parse().ok());
            Some((numbers.next()??, numbers.next()??, numbers.next()??))
        });
        lines.collect::<Option<_>>().map(Self)
    }

    /// What an id is inside; 65534, nobody, for one that is not in the map.
    pub(crate) fn inside(&self, id: u32) -> u32 {
        let within = self.0.iter().find(|(_, here, count)| id.wrapping_sub(*here) < *count);
        within.map_or(65_534, |(inside, here, _)| inside + (id - here))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_their_ranges() {
        let map = Map::parse("         0     524288          1\n 1 600000 65535\n").unwrap();
        assert_eq!([524_288, 600_000, 665_534, 7].map(|id| map.inside(id)), [0, 1, 65_535, 65_534]);
    }
}
