//! Accounts of the `host` image: system accounts by name and number, and nothing of people.

/// The account that commands can run as when not as root.
const USER: &str = "user";

/// First id that belongs to a person on common distributions (login.defs(5), `UID_MIN`).
const FIRST_PERSON: u32 = 1000;

/// The id of nobody.
const NOBODY: u32 = 65_534;

/// `/etc/passwd` from the host's: root, system accounts and nobody without their comments and
/// shells, and `user` with id 1000.
pub(super) fn passwd(host: &str, shell: &str) -> String {
    let mut lines = vec![format!("root:x:0:0:root:/root:{shell}")];
    for fields in system_lines(host, 7) {
        if let [name, _, uid, gid, _, home, _] = fields.as_slice()
            && gid.parse::<u32>().is_ok()
            && home.starts_with('/')
        {
            lines.push(format!("{name}:x:{uid}:{gid}::{home}:/usr/sbin/nologin"));
        }
    }
    lines.push(format!("{USER}:x:{FIRST_PERSON}:{FIRST_PERSON}::/home/{USER}:{shell}"));
    lines.join("\n") + "\n"
}

/// `/etc/group` likewise, without members.
pub(super) fn group(host: &str) -> String {
    let mut lines = vec!["root:x:0:".to_owned()];
    for fields in system_lines(host, 4) {
        if let [name, _, gid, _] = fields.as_slice() {
            lines.push(format!("{name}:x:{gid}:"));
        }
    }
    lines.push(format!("{USER}:x:{FIRST_PERSON}:"));
    lines.join("\n") + "\n"
}

/// The lines of system accounts, taken apart; root's is made anew.
fn system_lines(text: &str, fields: usize) -> Vec<Vec<&str>> {
    let split = |line| -> Vec<&str> { str::split(line, ':').collect() };
    let of_system = |line: &Vec<&str>| {
        let name = line.first().copied().unwrap_or_default();
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let id: Option<u32> = line.get(2).and_then(|id| id.parse().ok());
        let known = id.is_some_and(|id| (1..FIRST_PERSON).contains(&id) || id == NOBODY);
        line.len() == fields && known && name != USER && !name.is_empty() && name.bytes().all(plain)
    };
    text.lines().map(split).filter(of_system).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_and_their_words_stay_out() {
        let host = "root:x:0:0:Alice's machine:/root:/bin/zsh\n\
                    daemon:x:1:1:daemon:/usr/sbin:/bin/sh\n\
                    +::::::\n\
                    alice:x:1000:1000:Alice Example,,555:/home/alice:/bin/bash\n\
                    user:x:999:999::/:/bin/sh\n\
                    nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
        assert_eq!(
            passwd(host, "/bin/bash"),
            "root:x:0:0:root:/root:/bin/bash\n\
             daemon:x:1:1::/usr/sbin:/usr/sbin/nologin\n\
             nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n\
             user:x:1000:1000::/home/user:/bin/bash\n"
        );
        let host = "root:x:0:\nadm:x:4:alice\nalice:x:1000:\ndocker:x:998:alice\n";
        assert_eq!(group(host), "root:x:0:\nadm:x:4:\ndocker:x:998:\nuser:x:1000:\n");
    }
}
