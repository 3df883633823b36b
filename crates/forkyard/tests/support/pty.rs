//! A terminal for a program under test, with the test as the person before it.

// Each test executable uses a part of this.
#![allow(dead_code, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use forkyard_testkit::wait_some;
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, Winsize};

/// How long anything may take that should take milliseconds, on a machine that is busy.
const SOON: Duration = Duration::from_secs(30);

/// A terminal (pty(7)) and the program that runs on it.
#[derive(Debug)]
pub struct Pty {
    keyboard: File,
    far: OwnedFd,
    screen: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
    child: Child,
}

impl Pty {
    /// Starts a program with a terminal of 24 by 80 as its controlling one (setsid(1)).
    #[track_caller]
    pub fn start(program: &Command) -> Self {
        let ours = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        rustix::pty::grantpt(&ours).unwrap();
        rustix::pty::unlockpt(&ours).unwrap();
        let name = rustix::pty::ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
        let far = OwnedFd::from(File::options().read(true).write(true).open(name).unwrap());
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&far, size).unwrap();
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let end = || far.try_clone().unwrap();
        command.env("TERM", "xterm").stdin(end()).stdout(end()).stderr(end());
        let child = command.spawn().unwrap();
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (shown, mut from) = (Arc::clone(&screen), File::from(ours.try_clone().unwrap()));
        let reader = std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            // EIO: nobody has the far end any more.
            while let Ok(n @ 1..) = from.read(&mut chunk) {
                shown.lock().unwrap().extend_from_slice(&chunk[..n]);
            }
        });
        Self { keyboard: File::from(ours), far, screen, reader, child }
    }

    /// All that was shown so far.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    /// Waits until this was shown.
    #[track_caller]
    pub fn until(&self, text: &str) {
        let end = std::time::Instant::now() + SOON;
        while !self.shown().contains(text) {
            assert!(std::time::Instant::now() < end, "no `{text}` in: {:?}", self.shown());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Makes the window larger or smaller.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.keyboard, size).unwrap();
    }

    /// Whether keys come as they are pressed, and not line by line.
    pub fn is_raw(&self) -> bool {
        let modes = rustix::termios::tcgetattr(&self.far).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// Waits for the program's end; its status, and all that it showed.
    #[track_caller]
    pub fn finish(mut self) -> (ExitStatus, String) {
        let child = &mut self.child;
        let status =
            wait_some("the end of the program on a terminal", SOON, || child.try_wait().unwrap());
        drop(self.far);
        self.reader.join().unwrap();
        let shown = self.screen.lock().unwrap();
        (status, String::from_utf8_lossy(&shown).into_owned())
    }
}
