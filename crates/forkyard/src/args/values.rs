//! Values as people write them: sizes, durations, variables, volumes, signals.

use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use forkyard_engine::model::{Net, Volume, Workspace, WorkspaceMode};

/// The least memory a sandbox can be given; the API refuses less.
const LEAST_MEMORY: u64 = 4 << 20;

/// Bytes: `512m`, `2g`, `1.5GiB`, `4096`. Units are powers of 1024, as Docker has them.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is no size; write 512m or 2g");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    let factor = 1_u64 << shift;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(bad);
    }
    let bytes = number.parse::<f64>().map_err(|_| bad())? * factor as f64;
    if bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(bad()) }
}

/// A size that a sandbox's memory can have.
pub(crate) fn memory(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes if bytes >= LEAST_MEMORY => Ok(bytes),
        _ => Err(format!("`{text}` is too little; a sandbox needs 4m at least")),
    }
}

/// Where to listen: `127.0.0.1:3000`, `[::1]:3000`, `localhost:3000`.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    numeric.parse().map_err(|_| {
        format!("`{text}` is no address and port; write 127.0.0.1:3000, or 0.0.0.0:3000 for all")
    })
}

/// Processors: a positive number.
pub(crate) fn cpus(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(count) if count.is_finite() && count > 0.0 => Ok(count),
        _ => Err(format!("`{text}` is no count of processors; write 0.5 or 2")),
    }
}

/// How many: the server tells which numbers are too many.
pub(crate) fn count(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("`{text}` is no whole number; write 1 or 4"))
}

/// A time: `30s`, `5m`, `1h30m`, `250ms`; a bare number is seconds. Never nothing.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is no duration; write 30s, 5m or 1h30m");
    let mut total = 0_u64;
    let mut rest = text;
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        total = text.parse::<u64>().ok().and_then(|s| s.checked_mul(1000)).ok_or_else(bad)?;
        rest = "";
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        total = number
            .checked_mul(milliseconds)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(bad)?;
        rest = tail;
    }
    if total == 0 { Err(bad()) } else { Ok(Duration::from_millis(total)) }
}

/// A variable for a sandbox: set here, or the caller's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Variable {
    Set(String, String),
    Caller(String),
}

impl Variable {
    /// Name and value; nothing when the caller's is not set, as Docker has it.
    pub(crate) fn resolve(self) -> Option<(String, String)> {
        match self {
            Self::Set(name, value) => Some((name, value)),
            Self::Caller(name) => std::env::var(&name).ok().map(|value| (name, value)),
        }
    }
}

/// `K=V`, or `K` to pass the caller's.
pub(crate) fn variable(text: &str) -> Result<Variable, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    if name.is_empty() || text.contains('\0') {
        return Err(format!("`{text}` has no name; write K=V"));
    }
    Ok(match value {
        Some(value) => Variable::Set(name.to_owned(), value.to_owned()),
        None => Variable::Caller(name.to_owned()),
    })
}

/// The variables of an `--env-file`: values are taken as they are, quotes included.
pub(crate) fn env_file(text: &str) -> Result<Vec<Variable>, String> {
    let mut variables = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = variable(line).map_err(|why| format!("line {}: {why}", index + 1))?;
        variables.push(entry);
    }
    Ok(variables)
}

/// `K=V`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is no pair; write K=V")),
    }
}

/// `SRC:DST[:ro|rw]`; a relative `SRC` is taken from the working directory.
pub(crate) fn volume(text: &str) -> Result<Volume, String> {
    let bad = || format!("`{text}` is no volume; write SRC:DST or SRC:DST:ro");
    let mut parts = text.split(':');
    let (source, target) = (parts.next().ok_or_else(bad)?, parts.next().ok_or_else(bad)?);
    let read_only = match parts.next() {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(_) => return Err(bad()),
    };
    if parts.next().is_some() || source.is_empty() || !target.starts_with('/') {
        return Err(bad());
    }
    let source = std::path::absolute(Path::new(source)).map_err(|error| error.to_string())?;
    let source = source.into_os_string().into_string().map_err(|_| bad())?;
    Ok(Volume { source, target: target.to_owned(), read_only })
}

/// `DIR`, `DIR:PATH`, either with `:cow`, `:rw` or `:ro`; a relative DIR is made absolute.
pub(crate) fn workspace(text: &str) -> Result<Workspace, String> {
    let bad = || format!("`{text}` is no workspace; write DIR, DIR:PATH or DIR:PATH:ro");
    let mut parts: Vec<&str> = text.split(':').collect();
    let mode = match parts.last() {
        Some(&"cow") => Some(WorkspaceMode::Cow),
        Some(&"rw") => Some(WorkspaceMode::Rw),
        Some(&"ro") => Some(WorkspaceMode::Ro),
        _ => None,
    };
    if mode.is_some() {
        parts.pop();
    }
    let (source, target) = match parts.as_slice() {
        [source] => (*source, Workspace::TARGET),
        [source, target] if target.starts_with('/') => (*source, *target),
        _ => return Err(bad()),
    };
    if source.is_empty() {
        return Err(bad());
    }
    let source = std::path::absolute(Path::new(source)).map_err(|error| error.to_string())?;
    let source = source.into_os_string().into_string().map_err(|_| bad())?;
    Ok(Workspace { source, target: target.to_owned(), mode: mode.unwrap_or_default() })
}

/// `none` or `host`.
pub(crate) fn net(text: &str) -> Result<Net, String> {
    match text {
        "none" => Ok(Net::None),
        "host" => Ok(Net::Host),
        _ => Err(format!("`{text}` is no network; write none or host")),
    }
}

/// How long the server stays without anything to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idle {
    Never,
    After(Duration),
}

impl Idle {
    /// How long, if there is an end.
    pub(crate) fn limit(self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::After(idle) => Some(idle),
        }
    }
}

impl FromStr for Idle {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "never" => Ok(Self::Never),
            _ => duration(text).map(Self::After),
        }
    }
}

/// A signal's number on Linux, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signal(pub(crate) i32);

/// Names of the signals 1 to 31, signal(7).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

impl FromStr for Signal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.to_ascii_uppercase();
        let name = name.strip_prefix("SIG").unwrap_or(&name);
        let number = match SIGNALS.iter().position(|known| *known == name) {
            Some(index) => index as i32 + 1,
            None => text.parse().unwrap_or(0),
        };
        if (1..=64).contains(&number) {
            Ok(Self(number))
        } else {
            Err(format!("`{text}` is no signal; write TERM, SIGTERM or 15"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        let cases = [("0", 0), ("4096", 4096), ("512m", 512 << 20), ("2G", 2 << 30)];
        for (text, bytes) in cases {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        assert_eq!(size("1.5GiB"), Ok(3 << 29));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "m", "-1", "1 m", "1x", "1.2.3", "99999999t", "1e3", "١"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert!(memory("3m").is_err());
    }

    #[test]
    fn durations_add_their_parts() {
        let cases = [("30s", 30_000), ("1h30m", 5_400_000), ("250ms", 250), ("90", 90_000)];
        for (text, milliseconds) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "0", "0s", "s", "5", "1h30", "-1s", "1y", "99999999999999999999s"] {
            assert_eq!(duration(text).is_err(), text != "5", "{text}");
        }
    }

    #[test]
    fn a_volume_without_an_absolute_target_is_refused() {
        let volume_ = volume("/src:/dst:ro").unwrap();
        assert_eq!((volume_.source.as_str(), volume_.target.as_str()), ("/src", "/dst"));
        assert!(volume_.read_only);
        assert!(volume("./x:/dst").unwrap().source.starts_with('/'));
        for text in ["/src", "/src:dst", ":/dst", "/a:/b:xx", "/a:/b:ro:c"] {
            assert!(volume(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_workspace_has_a_place_and_a_mode_when_none_is_named() {
        let parts = |text| workspace(text).map(|w| (w.source, w.target, w.mode));
        let is =
            |source: &str, target: &str, mode| Ok((source.to_owned(), target.to_owned(), mode));
        assert_eq!(parts("/src"), is("/src", "/workspace", WorkspaceMode::Cow));
        assert_eq!(parts("/src:ro"), is("/src", "/workspace", WorkspaceMode::Ro));
        assert_eq!(parts("/src:/dst"), is("/src", "/dst", WorkspaceMode::Cow));
        assert_eq!(parts("/src:/dst:rw"), is("/src", "/dst", WorkspaceMode::Rw));
        assert!(workspace(".").unwrap().source.starts_with('/'));
        for text in ["", ":ro", "/src:dst", "/src:/dst:xx", "/a:/b:/c", "/a:/b:/c:ro"] {
            assert!(workspace(text).is_err(), "{text}");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["TERM", "sigterm", "15"] {
            assert_eq!(text.parse(), Ok(Signal(15)));
        }
        for text in ["", "0", "65", "SIG", "NOPE", "-9"] {
            assert!(text.parse::<Signal>().is_err(), "{text}");
        }
    }

    #[test]
    fn env_files_skip_comments_and_keep_quotes() {
        let variables = env_file("# c\n\nA=\"1\"\n  B=x=y\nC\n").unwrap();
        let set = |k: &str, v: &str| Variable::Set(k.to_owned(), v.to_owned());
        let expected = vec![set("A", "\"1\""), set("B", "x=y"), Variable::Caller("C".to_owned())];
        assert_eq!(variables, expected);
        assert_eq!(env_file("A=1\n=2").unwrap_err(), "line 2: `=2` has no name; write K=V");
    }

    proptest! {
        #[test]
        fn written_durations_read_back(ms in 1_u64..1 << 40) {
            let text = format!("{}h{}ms", ms / 3_600_000, ms % 3_600_000);
            prop_assert_eq!(duration(&text), Ok(Duration::from_millis(ms)));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC*") {
            let _ = (size(&text), duration(&text), volume(&text), env_file(&text), workspace(&text));
            let _ = (cpus(&text), variable(&text), text.parse::<Signal>());
        }

        #[test]
        fn written_sizes_read_back(mebibytes in 0_u64..1 << 43) {
            prop_assert_eq!(size(&format!("{mebibytes}m")), Ok(mebibytes << 20));
        }
    }
}
