//! What is shown while an image is being fetched.

use forkyard_testkit::TestServer;
use serde_json::Value;

use crate::make::{base, file, layer, layout, plain};
use crate::pty::Pty;
use crate::support::{code, stderr};

#[test]
fn a_line_a_step_where_nobody_watches_and_nothing_when_asked_to_be_quiet() {
    let server = TestServer::start();
    let layout = layout("app", &[&base(), &layer(&[file("x", "y")])], &plain());
    let path = layout.dir.path().to_str().unwrap();
    let out = server.cli(&["image", "import", path]);
    let told = stderr(&out);
    assert_eq!((code(&out), out.stdout.as_slice()), (0, b"app\n".as_slice()), "{told}");
    assert!(!told.contains(['\x1b', '\r']), "{told}");
    assert_eq!(told.lines().filter(|line| line.ends_with(": done")).count(), 2, "{told}");
    // Again, they are there.
    let again = stderr(&server.cli(&["image", "import", path]));
    assert!(!again.contains("unpacking"), "{again}");

    let out = server.cli(&["image", "import", "-q", path]);
    assert_eq!((stderr(&out).as_str(), out.stdout.as_slice()), ("", b"app\n".as_slice()));
    let out = server.cli(&["image", "import", "-q", "--json", path]);
    let json: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&json["name"], &json["layers"]), (&"app".into(), &2.into()));
}

#[test]
fn bars_are_drawn_on_a_terminal() {
    let server = TestServer::start();
    let layout = layout("app", &[&base()], &plain());
    let command = server.command(&["image", "import", layout.dir.path().to_str().unwrap()]);
    let (status, drawn) = Pty::start(&command).finish();
    assert!(status.success() && drawn.ends_with("app\r\n"), "{status} {drawn:?}");
    assert!(drawn.contains("==="), "{drawn:?}");
    assert!(drawn.contains("\x1b["), "{drawn:?}");
}
