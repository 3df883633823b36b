//! Who descends from whom, by `/proc`.

use std::collections::BTreeMap;

/// Descendants of `shell`, by way of its children whose process id is above `after`.
///
/// The guest's own processes are looked at while they run: one that ends meanwhile is left out.
pub(crate) fn descendants(shell: u32, after: u32) -> Vec<u32> {
    let parents = parents();
    parents
        .keys()
        .copied()
        .filter(|&pid| {
            let mut at = pid;
            // No chain is longer than there are processes.
            for _ in 0..=parents.len() {
                match parents.get(&at) {
                    Some(&parent) if parent == shell => return at > after,
                    Some(&parent) => at = parent,
                    None => return false,
                }
            }
            false
        })
        .collect()
}

fn parents() -> BTreeMap<u32, u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeMap::new() };
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
            Some((pid, parent(&stat)?))
        })
        .collect()
}

/// The fourth field of `proc_pid_stat(5)`. The second, the name, may hold anything: what counts is
/// after its last parenthesis.
fn parent(stat: &[u8]) -> Option<u32> {
    let end = stat.iter().rposition(|&b| b == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_mislead() {
        assert_eq!(parent(b"12 (a) R 1 (b) S 7 12 12 0"), Some(7));
        assert_eq!(parent(b"12 (sh) S 3 12"), Some(3));
        assert_eq!(parent(b"12"), None);
        assert_eq!(parent(b"12 (\xff"), None);
    }
}
