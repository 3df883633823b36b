//! Paths and queries of requests, percent-encoded (RFC 3986).

use std::fmt::Write;

/// The path of a request, with its query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    text: String,
    has_query: bool,
}

impl Url {
    /// A path that needs no encoding.
    pub(crate) fn new(path: &str) -> Self {
        Self { text: path.to_owned(), has_query: false }
    }

    /// A sandbox, by id or name.
    pub(crate) fn sandbox(id: &str) -> Self {
        Self::new("/v1/sandboxes").part(id)
    }

    /// A command of a sandbox.
    pub(crate) fn command(id: &str, command: u32) -> Self {
        Self::sandbox(id).part("commands").part(&command.to_string())
    }

    /// Adds a part to the path; slashes in it are encoded.
    pub(crate) fn part(mut self, part: &str) -> Self {
        self.text.push('/');
        encode(&mut self.text, part.as_bytes());
        self
    }

    /// Adds a name and its value, in any bytes, to the query.
    pub(crate) fn query(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.text.push(if self.has_query { '&' } else { '?' });
        self.has_query = true;
        self.text.push_str(name);
        self.text.push('=');
        encode(&mut self.text, value.as_ref());
        self
    }

    /// As it goes into the request.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

/// Writes unreserved characters as they are, all other bytes as `%XX`.
fn encode(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            text.push(char::from(*byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_part() {
        let url = Url::new("/v1/images").part("a/b:c?d").query("x", b"\xff&=").query("y", "/");
        assert_eq!(url.as_str(), "/v1/images/a%2Fb%3Ac%3Fd?x=%FF%26%3D&y=%2F");
        assert_eq!(Url::command("n", 7).as_str(), "/v1/sandboxes/n/commands/7");
    }
}
