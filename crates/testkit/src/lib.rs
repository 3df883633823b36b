//! What forkyard's tests share: a server of their own, images to start from, and proof that
//! nothing is left behind.
//!
//! ```no_run
//! use forkyard_testkit::{TestServer, skip};
//!
//! if !forkyard_testkit::is_root() {
//!     skip!("root");
//! }
//! let server = TestServer::start();
//! let out = server.ok(&["run", "--", "echo", "hello"]);
//! assert_eq!(out, "hello\n");
//! let (status, _) = server.get("/v1/health");
//! assert_eq!(status, 200);
//! ```
//!
//! Dropping the [`TestServer`] deletes its sandboxes, ends the server and looks for what is left:
//! processes, mounts, cgroups, files. Anything found fails the test. This holds when the test
//! panics too; then the leak is told on stderr, since a second panic would abort.
//!
//! # Skips
//!
//! A test that needs what the host lacks says so with [`skip!`] and returns. `./test` collects
//! these lines, shows them and counts them; they are not counted as passed.
//!
//! # Limits
//!
//! Everything here panics with what went wrong instead of returning errors: it is for tests alone.
//! Only `/proc` and the file system are asked, so what another user hides is not seen.

#![forbid(unsafe_code)]
// A failure of the kit is a failure of the test that uses it.
#![allow(clippy::missing_panics_doc)]

pub mod docs;
pub mod http;
pub mod image;
pub mod leaks;
pub mod oci;
pub mod poll;
pub mod registry;
pub mod run;
pub mod server;

use std::io::Write as _;

pub use http::Http;
pub use image::{ImageDir, image_dir};
pub use leaks::{Leak, Leaks};
pub use poll::{wait_for, wait_some};
pub use run::{finish, finish_within};
pub use server::{TestServer, binary};

/// Whether this process is root in its user namespace.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether the single-id mode is asked for (`FORKYARD_IDS=single`), which `./test` does in one of
/// its unprivileged runs.
pub fn is_single_id() -> bool {
    std::env::var_os("FORKYARD_IDS").is_some_and(|mode| mode == "single")
}

/// The first directory of `PATH` that has this program, with the program's name.
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Ends the test here because the host lacks something: prints `skipped: TEST: WHAT` and returns
/// from the function.
///
/// Takes what is lacking, as for [`format!`]. The function must return `()`.
#[macro_export]
macro_rules! skip {
    ($($lacking:tt)+) => {{
        fn here() {}
        $crate::print_skip(::std::any::type_name_of_val(&here), &::std::format!($($lacking)+));
        return;
    }};
}

/// The line of [`skip!`], past libtest's capture, so that it is seen although the test passes.
#[doc(hidden)]
pub fn print_skip(here: &str, lacking: &str) {
    // One write, so that lines of parallel tests do not mix. A closed stderr is no reason to fail.
    let _ = std::io::stderr().write_all(skip_line(here, lacking).as_bytes());
}

/// `here` is the type name of a function inside the test: `crate::module::test::here`.
fn skip_line(here: &str, lacking: &str) -> String {
    let test = here.trim_end_matches("::here").trim_end_matches("::{{closure}}");
    format!("skipped: {test}: {}\n", lacking.replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_names_its_test_and_stays_one_line() {
        fn here() {}
        let line = skip_line(std::any::type_name_of_val(&here), "two\nlines");
        assert!(
            line.ends_with("tests::a_skip_names_its_test_and_stays_one_line: two lines\n"),
            "{line}"
        );
        assert!(line.starts_with("skipped: forkyard_testkit::"), "{line}");
        assert_eq!(skip_line("a::b::{{closure}}::here", "x"), "skipped: a::b: x\n");
    }

    #[test]
    fn programs_are_found_along_path() {
        assert!(find_program("sh").is_some());
        assert_eq!(find_program("no-such-program-anywhere"), None);
    }
}
