//! What is killed while it looks into what only can be looked into by touching it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use forkyard_testkit::TestServer;
use rustix::process::{Pid, Signal, kill_process};

use super::support::kill::Random;
use super::support::templates;
use super::{goes_on, start};

#[test]
fn a_template_killed_while_it_looks_into_sockets_leaves_all_in_them() {
    let server = TestServer::start();
    let source = start(&server, "much_waits", &[], &[]);
    let mut random = Random(0x5eed_0013);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let out = server.cli(&["fork", &source]);
                if out.status.success() {
                    server.ok(&["rm", String::from_utf8_lossy(&out.stdout).trim()]);
                }
            }
        });
        let mut killed = 0;
        while killed < 20 {
            for template in templates(&server) {
                thread::sleep(Duration::from_micros(random.below(40_000)));
                let pid = Pid::from_raw(template.pid.cast_signed()).unwrap();
                killed += u32::from(kill_process(pid, Signal::KILL).is_ok());
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    goes_on(&server, "much_waits", &source, "1");
}
