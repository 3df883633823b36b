//! Which changes are asked for.

/// Which changes of an overlay are asked for. Paths are from its top, without a slash before them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// These paths and all below them; everything where there are none.
    pub paths: Vec<Vec<u8>>,
    /// These paths and all below them are left out, before anything else: something else is
    /// mounted there. Directories that had to be made for them do not count as changes.
    pub hidden: Vec<Vec<u8>>,
    /// These directories do not count as changes where they are as whoever made the overlay makes
    /// them.
    pub made: Vec<Vec<u8>>,
}

/// What is to be done with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// It is told, and so is what is below it.
    Told,
    /// Something below it may be wanted.
    Below,
    /// Nothing.
    Nothing,
}

impl Wanted {
    pub(crate) fn at(&self, path: &[u8]) -> Want {
        if self.hidden.iter().any(|hidden| is_below(path, hidden)) {
            Want::Nothing
        } else if self.paths.is_empty() || self.paths.iter().any(|wanted| is_below(path, wanted)) {
            Want::Told
        } else if self.paths.iter().any(|wanted| is_below(wanted, path)) {
            Want::Below
        } else {
            Want::Nothing
        }
    }

    /// Whether a new directory at this path may be no change.
    pub(crate) fn may_be_made(&self, path: &[u8]) -> bool {
        self.hidden.iter().chain(&self.made).any(|made| is_below(made, path))
    }
}

/// Whether a path is another one or below it.
fn is_below(path: &[u8], top: &[u8]) -> bool {
    top.is_empty()
        || path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_wanted_with_all_below_and_hidden_before_that() {
        let path = |text: &str| text.as_bytes().to_vec();
        let wanted = Wanted {
            paths: vec![path("etc/app"), path("usr")],
            hidden: vec![path("usr/share")],
            made: vec![path("srv/a")],
        };
        for (path, want) in [
            ("etc", Want::Below),
            ("etc/app", Want::Told),
            ("etc/app/x", Want::Told),
            ("etc/application", Want::Nothing),
            ("usr/share", Want::Nothing),
            ("usr/share/x", Want::Nothing),
            ("usr/shared", Want::Told),
        ] {
            assert_eq!(wanted.at(path.as_bytes()), want, "{path}");
        }
        assert!(wanted.may_be_made(b"srv") && wanted.may_be_made(b"usr"));
        assert!(!wanted.may_be_made(b"srv/a/b") && !wanted.may_be_made(b"etc"));
        assert_eq!(Wanted::default().at(b"x"), Want::Told);
    }
}
