//! What a sandbox changed: read from the layers of an overlay, listed, and written as a patch.
//!
//! A sandbox writes to layers that lie above those it was made from. [`diff`] compares the two by
//! looking at what is in the upper ones alone, so that it costs what was changed and not what there
//! is; [`Patch`] writes a change as git has it, for `git apply`; [`commit`](commit::commit) brings them
//! into a directory, all of them or none.
//!
//! ```
//! use forkyard_branch::{ChangeKind, Layers, Wanted, diff};
//!
//! let dir = tempfile::tempdir()?;
//! let (upper, lower) = (dir.path().join("upper"), dir.path().join("lower"));
//! std::fs::create_dir(&upper)?;
//! std::fs::create_dir(&lower)?;
//! std::fs::write(upper.join("new"), "text\n")?;
//!
//! let layers = Layers::new(vec![std::fs::File::open(upper)?.into()],
//!                          vec![std::fs::File::open(lower)?.into()]);
//! let changes = diff(&layers, &Wanted::default())?;
//! assert_eq!(changes[0].path, b"new");
//! assert_eq!(changes[0].kind, ChangeKind::Added);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The format
//!
//! That of [overlayfs](https://docs.kernel.org/filesystems/overlayfs.html), as a mount with
//! `userxattr` reads and writes it: a whiteout is a character device 0/0, or an empty file with
//! `user.overlay.whiteout` in a directory whose `user.overlay.opaque` is `x`; a directory with
//! `user.overlay.opaque` of `y` hides those below it. Such mounts neither make nor follow redirects
//! and copies of metadata alone: what a guest moves it copies. `trusted.overlay.*` means nothing to
//! them.
//!
//! # Limits
//!
//! [`CHANGES_MAX`] changes, [`DEPTH_MAX`] directories within one another. Contents of more than
//! [`CONTENTS_MAX`] bytes are compared, and are told to differ, not how. The tree may change while it
//! is read: nothing outside of it is reached, and what goes away meanwhile is not told.
//!
//! # Tests
//!
//! Trees made at random are compared, and their patches given to `git apply`; layers are those of
//! real mounts where the host allows them.
#![forbid(unsafe_code)]

mod binary;
mod change;
pub mod commit;
mod compare;
mod contents;
mod error;
mod layers;
mod patch;
mod quote;
mod rename;
mod walk;
mod wanted;

pub use change::{Aspects, Change, ChangeKind, Kind, Node};
pub use contents::{CONTENTS_MAX, Lines};
pub use error::{Error, Result};
pub use layers::Layers;
pub use patch::Patch;
pub use quote::quote;
pub use walk::{CHANGES_MAX, DEPTH_MAX, diff};
pub use wanted::Wanted;
