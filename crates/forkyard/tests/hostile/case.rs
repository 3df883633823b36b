//! A case of the list, and how it is played.

use std::time::{Duration, Instant};

use crate::arena::{Arena, Guest};

/// The longest that one case may take. Most take some milliseconds; an attack that delays the
/// server shows here.
const LIMIT: Duration = Duration::from_secs(300);

/// Something that a hostile guest tries.
#[derive(Debug)]
pub(crate) struct Case {
    /// Unique; the test's name.
    pub(crate) name: &'static str,
    /// What it tries, for readers of `docs/security.md`.
    pub(crate) tries: &'static str,
    /// What stops it, likewise.
    pub(crate) stopped_by: &'static str,
    /// Does it in a sandbox made for it, and panics unless it fails as it should.
    pub(crate) run: fn(&Guest),
}

/// Plays one case and looks at what is around it before and after.
#[track_caller]
pub(crate) fn play(case: &Case) {
    let arena = Arena::shared();
    let before = arena.host_state();
    let started = Instant::now();
    {
        let guest = arena.guest(&serde_json::json!({}));
        (case.run)(&guest);
        guest.check_alive();
    }
    arena.check_neighbour();
    assert_eq!(arena.host_state(), before, "{}: something changed on the host", case.name);
    let took = started.elapsed();
    assert!(took < LIMIT, "{} took {took:?}", case.name);
}

/// Makes a table of cases, and a test of each: `name: tries => stopped by, run;`
macro_rules! cases {
    ($($name:ident: $tries:literal => $stopped_by:literal, $run:expr;)*) => {
        pub(crate) const CASES: &[crate::case::Case] = &[
            $(crate::case::Case {
                name: stringify!($name),
                tries: $tries,
                stopped_by: $stopped_by,
                run: $run,
            },)*
        ];

        /// In a module of their own: a case may bear the name of the function that does it.
        mod tests {
            $(#[test]
            fn $name() {
                let case = super::CASES.iter().find(|case| case.name == stringify!($name));
                crate::case::play(case.expect("its own case"));
            })*
        }
    };
}
pub(crate) use cases;
