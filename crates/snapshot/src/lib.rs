//! Copies of running process trees: stopped for a moment, read, and built again elsewhere.
//!
//! [`take`] stops all processes of a sandbox, reads what they are into a [`Picture`] and what they
//! hold into a [`Stage`], memory of this process, and lets them go on. A fork of this process in
//! namespaces of its own, as the init of another sandbox, [`build`]s them again, any number of
//! times. There is no kernel module, and no file in between.
//!
//! # Limits
//!
//! `x86_64`, Linux 6.7 or newer for the list of filled pages. What cannot be copied is refused by
//! name before anything is altered.
//!
//! # Tests
//!
//! One program for each kind of kernel object, forked live and compared, by the binary's tests.

mod ahead;
mod build;
mod capture;
pub mod disk;
mod error;
mod files;
mod filled;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod ids;
mod inject;
mod inside;
mod interrupted;
mod listing;
mod machine;
mod options;
pub mod picture;
mod proc;
mod registers;
mod seal;
mod seize;
mod stage;
mod terminal;
mod times;

pub use build::{Home, build};
pub use capture::{Copies, Gone, Movable, Outside, Subject, Taken, hold_still, mount_id, take};
pub use error::Error;
pub use files::{FilesAhead, Names, Shareable, copy_above, copy_tree, is_large, is_much};
pub use inside::{Answer, Looker, Request, Waiting, answer};
pub use machine::prepare;
pub use picture::Picture;
pub use proc::ROOT_PLACE;
pub use seal::{Opening, SealError, Sealer};
pub use stage::Stage;
pub use terminal::look;
pub use times::Times;
