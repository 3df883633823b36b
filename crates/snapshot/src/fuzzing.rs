//! Readers of what guests have a say in, open to the targets in `fuzz/`: files of /proc show names
//! that guests chose, and as many lines as they like.

use crate::proc::{FdInfo, Stat, Status, parse_mapping, parse_mappings};

/// Reads `/proc/PID/maps` and `smaps`: what was read can be written and read again.
pub fn mappings(bytes: &[u8]) {
    let Some(all) = parse_mappings(bytes) else { return };
    assert!(all.len() <= bytes.split(|&b| b == b'\n').count());
    for mapping in all {
        let shown = mapping.shown();
        let again = parse_mapping(&shown).expect("what was read can be read again");
        assert_eq!(again.shown(), shown);
        assert!(!mapping.name.contains(&b'\n'), "one line each");
        let _ = (mapping.device(), mapping.own(), mapping.is_in_common());
        assert!(mapping.given_name().is_none_or(|name| name.len() < mapping.name.len()));
    }
}

/// Reads `/proc/PID/stat`, `status` and `limits`.
pub fn process(bytes: &[u8]) {
    if let Some(stat) = Stat::parse(bytes) {
        assert!(stat.name.len() < bytes.len());
        // A name changes nothing of what is read behind it.
        let end = bytes.iter().rposition(|&b| b == b')').unwrap_or_default();
        let other = [b"1 (".as_slice(), bytes.get(end..).unwrap_or_default()].concat();
        let other = Stat::parse(&other).expect("the same with another name");
        assert!(other.name.is_empty() && other.state == stat.state);
        assert!((4..60).all(|number| other.field(number) == stat.field(number)));
    }
    let status = Status::of(bytes.to_vec());
    for name in ["Name", "NSpid", "SigQ", "Groups", "CapEff"] {
        let _ = (status.number(name), status.hexadecimal(name), status.inner_id(name));
        let _ = status.numbers::<4>(name);
    }
    crate::capture::read_limits(bytes);
}

/// Reads `/proc/PID/fdinfo/N` of every kind, and `/proc/PID/timers`.
pub fn descriptors(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(info) = FdInfo::parse(&text) {
        assert!(info.value("flags").is_some_and(|flags| !flags.contains('\n')));
        crate::capture::read_info(&info);
    }
    crate::capture::read_timers(&text);
}
