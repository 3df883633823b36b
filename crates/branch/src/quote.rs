//! Names in any bytes, as text.

use std::borrow::Cow;

/// A name as git writes it where it is not plain: in quotes, with escapes as in C.
///
/// Plain is what is UTF-8 and has neither quotes, backslashes nor control characters.
pub fn quote(name: &[u8]) -> Cow<'_, [u8]> {
    let text = std::str::from_utf8(name);
    let plain = |c: char| !c.is_control() && c != '"' && c != '\\' && !turns(c);
    if text.is_ok_and(|text| text.chars().all(plain)) {
        return Cow::Borrowed(name);
    }
    let mut quoted = vec![b'"'];
    for &byte in name {
        match byte {
            b'"' | b'\\' => quoted.extend([b'\\', byte]),
            b'\n' => quoted.extend(b"\\n"),
            b'\t' => quoted.extend(b"\\t"),
            b'\r' => quoted.extend(b"\\r"),
            b' '..=b'~' => quoted.push(byte),
            _ => quoted.extend(format!("\\{byte:03o}").bytes()),
        }
    }
    quoted.push(b'"');
    Cow::Owned(quoted)
}

/// Whether a character reorders what follows it on a screen.
fn turns(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A path in a message, cut where it is long.
pub(crate) fn shown(path: &[u8]) -> String {
    const MOST: usize = 256;
    let cut = path.get(..MOST).unwrap_or(path);
    let dots = if cut.len() < path.len() { "..." } else { "" };
    format!("/{}{dots}", String::from_utf8_lossy(&quote(cut)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_plain_are_quoted_as_in_c() {
        for (name, text) in [
            (&b"a b"[..], "a b"),
            ("ä".as_bytes(), "ä"),
            (b"a\nb\tc", r#""a\nb\tc""#),
            (b"\"\\", r#""\"\\""#),
            (b"\xff\x01", r#""\377\001""#),
            ("\u{202e}x".as_bytes(), r#""\342\200\256x""#),
        ] {
            assert_eq!(String::from_utf8_lossy(&quote(name)), text);
        }
    }
}
