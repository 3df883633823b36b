//! The kernel boundary of forkyard: every `unsafe` block of the project, one file a facility.
//!
//! A function bears the name of its system call where it is one, and names the man page. What
//! rustix has is used from rustix; here is what it lacks, with safe names outside.
//!
//! # Example
//!
//! ```
//! use forkyard_sys::{process, process::SingleThreaded};
//!
//! // A process that forks must have one thread; doc tests have one more than that.
//! match SingleThreaded::prove() {
//!     Ok(proof) => {
//!         let child = process::fork(&proof, process::CloneFlags::default(), None, |_| 7)?;
//!         println!("child {:?}", child.pid);
//!     }
//!     Err(error) => println!("not forking: {error}"),
//! }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Limits
//!
//! Linux 6.1 or newer, 64 bit. Nothing here decides anything: policy lives in the crates above.

pub mod caps;
pub mod channel;
pub mod events;
pub mod fsid;
pub mod host;
pub mod landlock;
pub mod lock;
pub mod memory;
pub mod message_queues;
pub mod mount;
pub mod namespace;
pub mod net;
pub mod process;
pub mod ptrace;
pub mod remote;
pub mod schedule;
pub mod seccomp;
pub mod signal;
pub mod sockets;
pub mod stub;
pub mod system_v;
pub mod terminal;
pub mod timer;
pub mod userfault;
#[cfg(feature = "tokio")]
pub mod watch;
