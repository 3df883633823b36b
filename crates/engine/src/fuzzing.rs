//! Parsers of what guests write, open to the targets in `fuzz/`.

/// Reads lines of the pipe that tells of the ends of a session's lines.
pub fn session_ends(bytes: &[u8]) {
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        if let Some((_, status, _)) = crate::session::parse_done(line) {
            assert!((0..256).contains(&status), "{status}");
        }
    }
}
