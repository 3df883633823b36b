//! Parsers of what guests and clients send, open to the targets in `fuzz/`.

use std::io::Read as _;

use crate::files::tar_read::TarReader;
use crate::users::{find_group, find_user, groups_of};

/// Reads an archive of a client's to its end, contents included.
pub fn archive(bytes: &[u8]) {
    let mut reader = TarReader::new(bytes);
    let mut buffer = [0; 1000];
    while let Ok(Some(_)) = reader.next() {
        while let Ok(1..) = reader.read(&mut buffer) {}
    }
}

/// Looks a name up in a guest's `/etc/passwd` and `/etc/group`, the same bytes for both.
pub fn accounts(database: &[u8], name: &[u8]) {
    if let Some(user) = find_user(database, name, Some(0)) {
        assert!(user.home.starts_with(b"/") && user.shell.starts_with(b"/"), "{user:?}");
        assert!(user.uid != u32::MAX && user.gid != u32::MAX, "{user:?}");
    }
    assert_ne!(find_group(database, name), Some(u32::MAX));
    assert!(groups_of(database, name).len() <= 1024);
}
