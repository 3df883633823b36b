//! Archives as other tools write them, and archives that lie.

use std::process::Command;

use super::*;

fn archive_of(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    build(&mut builder);
    builder.into_inner().unwrap()
}

fn entries(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(bytes);
    let mut all = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut data = Vec::new();
        let mut buffer = [0; 1000];
        loop {
            match reader.read_data(&mut buffer)? {
                0 => break,
                n => data.extend_from_slice(&buffer[..n]),
            }
        }
        all.push((entry, data));
    }
    Ok(all)
}

#[test]
fn long_names_and_contents_survive() {
    let long = "d/".repeat(150) + "file";
    let bytes = archive_of(|builder| {
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o4755);
        builder.append_data(&mut header, &long, b"hello".as_slice()).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "link", &long).unwrap();
    });
    let all = entries(&bytes).unwrap();
    assert_eq!(all[0].0.name, long.as_bytes());
    assert_eq!((all[0].0.mode, all[0].1.as_slice()), (0o4755, b"hello".as_slice()));
    assert_eq!((all[1].0.kind, all[1].0.link.as_slice()), (Kind::Symlink, long.as_bytes()));
}

#[test]
fn sparse_files_of_gnu_tar_are_understood_in_all_its_formats() {
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("holes")).unwrap();
    for index in 0..40 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", index * 65_536).unwrap();
    }
    file.set_len(40 * 65_536).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--sparse-version=0.0"],
        &["--sparse-version=0.1"],
        &["--sparse-version=1.0"],
    ] {
        let format: Vec<&str> = match format {
            ["--format=gnu"] => format.to_vec(),
            other => [&["--format=posix"], other].concat(),
        };
        let output = Command::new("tar")
            .args(["-c", "--sparse"])
            .args(&format)
            .args(["-C", dir.path().to_str().unwrap(), "holes"])
            .output()
            .unwrap();
        assert!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
        let all = entries(&output.stdout).unwrap();
        assert_eq!(all.len(), 1, "{format:?}");
        let (entry, data) = &all[0];
        assert_eq!(entry.name, b"holes", "{format:?}");
        let sparse = entry.sparse.as_ref().unwrap();
        assert_eq!(sparse.real_size, 40 * 65_536);
        assert_eq!(sparse.segments.iter().filter(|s| s.1 > 0).count(), 40);
        let mut at = 0;
        for &(_, length) in &sparse.segments {
            if length > 0 {
                assert_eq!(&data[at..at + 4], b"data", "{format:?}");
            }
            at += length as usize;
        }
    }
}

#[test]
fn every_cut_is_noticed() {
    let bytes = archive_of(|builder| {
        let mut header = tar::Header::new_gnu();
        header.set_size(1500);
        builder.append_data(&mut header, "a".repeat(200), [7_u8; 1500].as_slice()).unwrap();
    });
    for length in 1..bytes.len() - 1024 {
        assert!(entries(&bytes[..length]).is_err(), "cut at {length}");
    }
    let mut reader = Reader::new(&bytes[..bytes.len() - 1024]);
    while reader.next().unwrap().is_some() {}
    assert_eq!(reader.end(), Some(End::Missing));
    let mut reader = Reader::new(bytes.as_slice());
    while reader.next().unwrap().is_some() {}
    assert_eq!(reader.end(), Some(End::Marker));
}

#[test]
fn headers_that_claim_much_memory_are_refused() {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_path("x").unwrap();
    header.set_size(1 << 40);
    header.set_cksum();
    assert!(matches!(entries(header.as_bytes()), Err(TarError::TooBig(_))));
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_cksum();
    assert!(matches!(entries(header.as_bytes()), Err(TarError::TooBig(_))));
}

#[test]
fn a_flipped_bit_in_a_header_is_noticed() {
    let mut bytes = archive_of(|builder| {
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        builder.append_data(&mut header, "name", [].as_slice()).unwrap();
    });
    bytes[2] ^= 1;
    assert!(matches!(entries(&bytes), Err(TarError::Checksum)));
}

proptest::proptest! {
    #[test]
    fn any_bytes_end_in_entries_or_an_error(
        bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..4096),
    ) {
        let _ = entries(&bytes);
    }

    #[test]
    fn any_field_of_a_valid_header_may_be_wrong(
        changes in proptest::collection::vec((0..500_usize, proptest::num::u8::ANY), 0..24),
        kind in proptest::sample::select(b"0123456789xgLKSX".to_vec()),
    ) {
        let mut header = tar::Header::new_gnu();
        header.set_path("name").unwrap();
        header.set_size(700);
        let mut block: [u8; 512] = *header.as_bytes();
        block[156] = kind;
        for (at, byte) in changes {
            block[at] = byte;
        }
        let mut header = tar::Header::from_byte_slice(&block).clone();
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(512 + 1024 + 1024, 0);
        let _ = entries(&bytes);
    }
}
