//! Users and groups of a sandbox: `USER[:GROUP]` against its own `/etc/passwd` and `/etc/group`.
//!
//! Both files are the guest's: they are opened as any file of the guest is (never through procfs,
//! never waiting), read up to [`DATABASE_MAX`], and need be neither UTF-8 nor well formed; lines
//! that make no sense are passed over. `root` is always found, so that no guest can lock its
//! owner out. Formats: [passwd(5)](https://man7.org/linux/man-pages/man5/passwd.5.html),
//! [group(5)](https://man7.org/linux/man-pages/man5/group.5.html).

use rustix::fs::OFlags;

use crate::files::proto::FileErrorKind;
use crate::files::root::{Access, Root};

/// Most bytes of a passwd or group file.
pub const DATABASE_MAX: usize = 1024 * 1024;

/// Most supplementary groups of a user; the kernel takes 65,536.
const GROUPS_MAX: usize = 1024;

/// Longest name that a listing gives; `LOGIN_NAME_MAX` of limits.h.
const NAME_MAX: usize = 256;

/// A user to run commands or touch files as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User id in the sandbox.
    pub uid: u32,
    /// Group id in the sandbox.
    pub gid: u32,
    /// Supplementary groups; none when the group was named.
    pub groups: Vec<u32>,
    /// Absolute path of the home directory; `/` where none is known.
    pub home: Vec<u8>,
    /// Absolute path of the shell; `/bin/sh` where none is known.
    pub shell: Vec<u8>,
    /// Login name, any bytes; the number where none is known.
    pub name: Vec<u8>,
}

/// Why there is no such user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Neither a name nor a number.
    #[error("user {0:?} is not USER or USER:GROUP")]
    Malformed(String),
    /// No entry of that name.
    #[error("no user {0:?} in the sandbox's /etc/passwd")]
    NoSuchUser(String),
    /// No entry of that name.
    #[error("no group {0:?} in the sandbox's /etc/group")]
    NoSuchGroup(String),
    /// A file could not be read.
    #[error("looking up a user: {0}")]
    Unreadable(String),
    /// The user namespace does not have the id.
    #[error("{}", unmapped(*id, what, *only_root))]
    NotMapped {
        /// The id.
        id: u32,
        /// `user` or `group`.
        what: &'static str,
        /// No other id than 0 is mapped.
        only_root: bool,
    },
}

fn unmapped(id: u32, what: &str, only_root: bool) -> String {
    if only_root {
        format!(
            "only root exists in this sandbox: {what} id {id} is not mapped, since the sandbox \
             was made without root and without subordinate ids"
        )
    } else {
        format!("{what} id {id} is outside of the ids that this sandbox has")
    }
}

impl User {
    /// Root, as where there is no `/etc/passwd`.
    pub fn root() -> Self {
        Self {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            home: b"/root".to_vec(),
            shell: b"/bin/sh".to_vec(),
            name: b"root".to_vec(),
        }
    }

    /// Checks that the sandbox's user namespace has all of the user's ids, groups excepted that
    /// are only supplementary: those it lacks are left out.
    ///
    /// # Errors
    ///
    /// [`UserError::NotMapped`]
    pub fn check_mapped(&mut self) -> Result<(), UserError> {
        let (users, groups) = (IdMap::of_users(), IdMap::of_groups());
        for (id, what, map) in [(self.uid, "user", &users), (self.gid, "group", &groups)] {
            if !map.has(id) {
                return Err(UserError::NotMapped { id, what, only_root: map.only_root() });
            }
        }
        self.groups.retain(|&group| groups.has(group));
        Ok(())
    }
}

/// Resolves `USER[:GROUP]`, each a name or a number, as Docker does: a name is looked for first,
/// a number needs no entry (its group is then 0 and its home `/`), a named group stands alone.
///
/// # Errors
///
/// A name without an entry, or a file that cannot be read when a name needs it.
pub fn resolve(root: &Root, spec: &str) -> Result<User, UserError> {
    let (user, group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    if user.is_empty() || group.is_some_and(str::is_empty) || spec.contains(['\0', '\n']) {
        return Err(UserError::Malformed(spec.to_owned()));
    }
    let passwd = read_database(root, b"/etc/passwd");
    let mut found = match (&passwd, user.parse::<u32>()) {
        (Ok(passwd), number) => find_user(passwd, user.as_bytes(), number.ok()),
        (Err(_), _) => None,
    }
    .map_or_else(|| user_without_entry(user, passwd.as_ref().err()), Ok)?;
    match (group, read_database(root, b"/etc/group")) {
        (Some(group), database) => {
            found.gid = match (database, group.parse()) {
                (Ok(database), number) => find_group(&database, group.as_bytes()).or(number.ok()),
                (Err(_), Ok(number)) => Some(number),
                (Err(error), Err(_)) => return Err(error),
            }
            .filter(|&gid| gid != u32::MAX)
            .ok_or_else(|| UserError::NoSuchGroup(group.to_owned()))?;
        }
        (None, Ok(database)) => found.groups = groups_of(&database, &found.name),
        // Without a readable group file there are no supplementary groups.
        (None, Err(_)) => {}
    }
    Ok(found)
}

fn user_without_entry(user: &str, unreadable: Option<&UserError>) -> Result<User, UserError> {
    match user.parse::<u32>() {
        Ok(0) => Ok(User::root()),
        // The id -1 means "none" to the kernel.
        Ok(uid) if uid != u32::MAX => {
            Ok(User { uid, home: b"/".to_vec(), name: user.as_bytes().to_vec(), ..User::root() })
        }
        _ if user == "root" => Ok(User::root()),
        _ => Err(unreadable.cloned().unwrap_or_else(|| UserError::NoSuchUser(user.to_owned()))),
    }
}

/// Names of users and groups by id, for listings. What cannot be read has no names.
#[derive(Debug, Default)]
pub(crate) struct Names {
    users: Vec<(u32, String)>,
    groups: Vec<(u32, String)>,
}

impl Names {
    pub(crate) fn read(root: &Root) -> Self {
        let names = |path, id_field| {
            let Ok(database) = read_database(root, path) else { return Vec::new() };
            let mut names: Vec<(u32, String)> = lines(&database)
                .filter_map(|line| {
                    let id = number(field(line, id_field)?)?;
                    let name = field(line, 0).filter(|name| name.len() <= NAME_MAX)?;
                    Some((id, String::from_utf8_lossy(name).into_owned()))
                })
                .collect();
            // The first entry of an id counts, as for getpwuid(3).
            names.sort_by_key(|(id, _)| *id);
            names.dedup_by_key(|(id, _)| *id);
            names
        };
        Self { users: names(b"/etc/passwd", 2), groups: names(b"/etc/group", 2) }
    }

    pub(crate) fn user(&self, uid: u32) -> String {
        name_in(&self.users, uid)
    }

    pub(crate) fn group(&self, gid: u32) -> String {
        name_in(&self.groups, gid)
    }
}

fn name_in(names: &[(u32, String)], id: u32) -> String {
    names
        .binary_search_by_key(&id, |(id, _)| *id)
        .ok()
        .and_then(|index| names.get(index))
        .map_or_else(String::new, |(_, name)| name.clone())
}

fn read_database(root: &Root, path: &[u8]) -> Result<Vec<u8>, UserError> {
    let file = match root.contents(path, Access::Read, OFlags::empty()) {
        Ok((file, _)) => file,
        Err(error) if error.kind == FileErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(UserError::Unreadable(error.to_string())),
    };
    crate::files::contents::read_up_to(&file, 0, DATABASE_MAX + 1)
        .map_err(|errno| UserError::Unreadable(errno.to_string()))
        .and_then(|bytes| {
            if bytes.len() > DATABASE_MAX {
                let path = String::from_utf8_lossy(path);
                Err(UserError::Unreadable(format!("{path} is larger than {DATABASE_MAX} bytes")))
            } else {
                Ok(bytes)
            }
        })
}

fn lines(database: &[u8]) -> impl Iterator<Item = &[u8]> {
    database.split(|&byte| byte == b'\n').filter(|line| !line.is_empty() && !line.contains(&0))
}

fn field(line: &[u8], index: usize) -> Option<&[u8]> {
    line.split(|&byte| byte == b':').nth(index)
}

/// A decimal id without sign, space or wrap; -1 is none.
fn number(field: &[u8]) -> Option<u32> {
    if !field.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(field).ok()?.parse().ok().filter(|&id| id != u32::MAX)
}

/// The entry with this name, or else this number.
pub(crate) fn find_user(passwd: &[u8], name: &[u8], uid: Option<u32>) -> Option<User> {
    // Most lines are others': only those that may be meant are taken apart.
    let of_name = |line: &&[u8]| field(line, 0) == Some(name);
    let by_number = |uid| lines(passwd).filter(move |line| id(line, 2) == Some(uid));
    lines(passwd)
        .filter(of_name)
        .find_map(parse_user)
        .or_else(|| by_number(uid?).find_map(parse_user))
}

/// The number in a field of a line, with spaces around it.
fn id(line: &[u8], index: usize) -> Option<u32> {
    number(field(line, index)?.trim_ascii())
}

fn parse_user(line: &[u8]) -> Option<User> {
    let absolute = |index, otherwise: &[u8]| match field(line, index) {
        Some(path @ [b'/', ..]) => path.to_vec(),
        _ => otherwise.to_vec(),
    };
    let name = field(line, 0).filter(|name| !name.is_empty())?;
    Some(User {
        uid: id(line, 2)?,
        gid: id(line, 3)?,
        groups: Vec::new(),
        home: absolute(5, b"/"),
        shell: absolute(6, b"/bin/sh"),
        name: name.to_vec(),
    })
}

pub(crate) fn find_group(database: &[u8], name: &[u8]) -> Option<u32> {
    lines(database)
        .filter(|line| field(line, 0) == Some(name))
        .find_map(|line| number(field(line, 2)?))
}

pub(crate) fn groups_of(database: &[u8], name: &[u8]) -> Vec<u32> {
    let mut groups: Vec<u32> = lines(database)
        .filter(|line| {
            field(line, 3).is_some_and(|members| members.split(|&b| b == b',').any(|m| m == name))
        })
        .filter_map(|line| number(field(line, 2)?))
        .take(GROUPS_MAX)
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// Whether the calling process's user namespace has this user id. Where `/proc/self/uid_map`
/// cannot be read, it is taken to: the system call that needs it then tells.
///
/// See [user_namespaces(7)](https://man7.org/linux/man-pages/man7/user_namespaces.7.html).
pub fn id_is_mapped(uid: u32) -> bool {
    IdMap::of_users().has(uid)
}

/// Whether the calling process's user namespace has this group id; as [`id_is_mapped`].
pub fn group_is_mapped(gid: u32) -> bool {
    IdMap::of_groups().has(gid)
}

/// Ranges of ids inside: (first, count). None when the kernel's file could not be read.
#[derive(Debug, PartialEq, Eq)]
struct IdMap(Option<Vec<(u32, u32)>>);

impl IdMap {
    fn of_users() -> Self {
        Self(std::fs::read_to_string("/proc/self/uid_map").ok().as_deref().map(parse_map))
    }

    fn of_groups() -> Self {
        Self(std::fs::read_to_string("/proc/self/gid_map").ok().as_deref().map(parse_map))
    }

    fn has(&self, id: u32) -> bool {
        self.0.as_ref().is_none_or(|ranges| {
            ranges.iter().any(|&(first, count)| id >= first && id - first < count)
        })
    }

    fn only_root(&self) -> bool {
        self.0.as_deref() == Some(&[(0, 1)])
    }
}

fn parse_map(text: &str) -> Vec<(u32, u32)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let first = fields.next()?.parse().ok()?;
            Some((first, fields.nth(1)?.parse().ok()?))
        })
        .collect()
}
