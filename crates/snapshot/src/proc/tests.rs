//! What guests choose is what is read of it, and nothing else.

use proptest::prelude::*;

use super::*;

/// A mapping with a name as the kernel writes it: without line ends, and not beginning with blanks.
fn mapping() -> impl Strategy<Value = Mapping> {
    let name = proptest::collection::vec(any::<u8>(), 0..60).prop_map(|mut name| {
        name.retain(|&byte| byte != b'\n');
        name.trim_ascii_start().to_vec()
    });
    let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    (numbers, any::<(u32, u32)>(), name, any::<[u8; 3]>()).prop_map(
        |((start, end, offset, inode), device, name, kilobytes)| Mapping {
            start,
            end,
            permissions: *b"rw-p",
            offset,
            device,
            inode,
            name,
            flags: vec![*b"rd", *b"wr"],
            anonymous: kilobytes[0].into(),
            swapped: kilobytes[1].into(),
            protection_key: kilobytes[2].into(),
            common: [kilobytes[1].into(), kilobytes[0].into()],
        },
    )
}

/// Its lines in smaps, those that are read and some that are not.
fn smaps(all: &[Mapping]) -> Vec<u8> {
    let mut text = Vec::new();
    for mapping in all {
        text.extend_from_slice(&mapping.shown());
        let (anonymous, swapped) = (mapping.anonymous, mapping.swapped);
        let [clean, dirty] = mapping.common;
        let key = mapping.protection_key;
        let rest = format!(
            "\nSize: 4 kB\nShared_Clean: {clean} kB\nShared_Dirty: {dirty} kB\nAnonymous: {anonymous:8} kB\nAnonHugePages: 9 kB\nSwap: {swapped} kB\n\
             SwapPss: 9 kB\nTHPeligible: 0\nProtectionKey: {key:8}\nVmFlags: rd wr \n"
        );
        text.extend_from_slice(rest.as_bytes());
    }
    text
}

proptest! {
    #[test]
    fn mappings_are_read_as_they_are_written(all in proptest::collection::vec(mapping(), 0..5)) {
        prop_assert_eq!(parse_mappings(&smaps(&all)), Some(all));
    }

    #[test]
    fn no_change_of_smaps_makes_its_reader_panic(all in proptest::collection::vec(mapping(), 1..3),
                                                 at: usize, byte: u8) {
        let mut text = smaps(&all);
        let at = at % text.len();
        text[at] = byte;
        let _ = parse_mappings(&text);
        let _ = parse_mappings(&text[..at]);
    }

    #[test]
    fn no_name_changes_what_is_told_of_a_process(name: Vec<u8>, fields: Vec<i64>) {
        let words: Vec<_> = fields.iter().map(i64::to_string).collect();
        let words = words.join(" ");
        let text = [b"7 (", name.as_slice(), b") S ", words.as_bytes()].concat();
        let stat = Stat::parse(&text).unwrap();
        prop_assert_eq!(stat.name, name);
        prop_assert_eq!(stat.state, b'S');
        prop_assert_eq!(stat.fields, fields.iter().map(|field| *field as u64).collect::<Vec<_>>());
    }

    #[test]
    fn no_name_imitates_a_line_of_status(name in "[^\n]*", id: u32, mask: u64) {
        let text = format!("Name:\t{name}\nNSpid:\t99\t{id}\nCapEff:\t{mask:016x}\n");
        let status = Status::of(text.into_bytes());
        prop_assert_eq!((status.inner_id("NSpid"), status.hexadecimal("CapEff")), (id, mask));
        prop_assert_eq!(status.numbers("NSpid"), [99, id, 0]);
    }

    #[test]
    fn positions_and_flags_are_read_whatever_follows(position: i64, flags: u32, rest: String) {
        let text = format!("pos:\t{position}\nflags:\t0{flags:o}\nmnt_id:\t9\n{rest}");
        let info = FdInfo::parse(&text).unwrap();
        prop_assert_eq!((info.position, info.flags), (position as u64, flags));
    }

    #[test]
    fn anything_is_read_without_a_panic(bytes: Vec<u8>) {
        let _ = parse_mappings(&bytes);
        let _ = Stat::parse(&bytes);
        let _ = FdInfo::parse(&String::from_utf8_lossy(&bytes));
        let status = Status::of(bytes);
        let _ = (status.number("Name"), status.inner_id("NSpid"), status.numbers::<4>("Uid"));
    }
}

#[test]
fn a_process_reads_itself() {
    let own = rustix::process::getpid();
    let all = mappings(own).unwrap();
    let places = places(own).unwrap();
    assert!(all.iter().any(|mapping| mapping.name == b"[vdso]" && !mapping.flags.is_empty()));
    assert!(places.len() + 4 > all.len() && all.len() + 4 > places.len());
    assert_eq!(Status::read(own).unwrap().number("Pid"), own.as_raw_nonzero().get() as u64);
    let parent = rustix::process::getppid().unwrap();
    assert_eq!(Stat::read(own).unwrap().field(4), parent.as_raw_nonzero().get() as u64);
}
