//! The end of a test's server, and what it must not leave.

use std::fs;
use std::io::Write as _;
use std::process::Child;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{END, TestServer, VANISH, seed};
use crate::leaks::{self, Leak};
use crate::poll::poll as look_until;

/// How a server ends that finds its store served by another one.
const ALREADY_SERVED: &str = "ended: exit status: 3";

impl TestServer {
    /// Deletes every sandbox and ends the server, in the way a user does.
    fn end_politely(&mut self) -> Result<(), String> {
        let ended = |child: &mut Child| look_until(END, || child.try_wait().ok().flatten());
        if self.http().request("GET", "/v1/health", "").is_err() {
            // Its sandboxes live on, and some of their files only a server can remove. This one,
            // or one that a command line started on demand, may be about to end.
            let _ = self.child.as_mut().and_then(ended);
            let launched = look_until(END, || match self.launch() {
                Err(why) if why.contains(ALREADY_SERVED) => None,
                launched => Some(launched),
            });
            launched.unwrap_or_else(|| Err(format!("the store is served for {END:?} already")))?;
        }
        self.remember();
        let http = self.http();
        let ask = |method, target: &str| {
            let (status, body) =
                http.request(method, target, "").map_err(|error| error.to_string())?;
            match status {
                200..=299 | 404 => Ok(body),
                _ => Err(format!("{method} {target}: {status} {}", String::from_utf8_lossy(&body))),
            }
        };
        for id in names(&ask("GET", "/v1/sandboxes")?, "id")? {
            ask("DELETE", &format!("/v1/sandboxes/{id}"))?;
        }
        // Their files may belong to ids that this user cannot remove. `host` has none and stays.
        for name in names(&ask("GET", "/v1/images")?, "name")? {
            let _ = ask("DELETE", &format!("/v1/images/{}", encode(&name)));
        }
        // So may layers of pulls that failed.
        let _ = ask("POST", "/v1/images/prune");
        ask("POST", "/v1/shutdown?force=true")?;
        // Another one, started on demand, is looked for with whatever else may be left.
        if self.child.as_mut().is_some_and(|child| ended(child).is_none()) {
            return Err(format!("the server runs {END:?} after POST /v1/shutdown"));
        }
        self.child = None;
        Ok(())
    }

    /// Kills whatever belongs to this store, the server first.
    fn end_by_force(&mut self) {
        self.remember();
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for process in self.processes() {
            if let Some(pid) = Pid::from_raw(process.pid as i32) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// What of this store is still there.
    fn left(&self) -> Vec<Leak> {
        let marker = self.marker();
        let mut left: Vec<Leak> = self.processes().into_iter().map(Leak::process).collect();
        left.extend(leaks::mounts(&marker));
        left.extend(self.cgroups.iter().flat_map(|name| leaks::cgroups(name)).map(Leak::Cgroup));
        // What a sandbox has in the store, and what waits to be removed.
        for part in ["sandboxes", "run", "trash"] {
            let entries = fs::read_dir(self.store.join(part)).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| Leak::File(entry.path())));
        }
        left
    }

    /// Ends everything and removes the directory; says what went wrong or stayed.
    fn finish(&mut self) -> Vec<String> {
        let mut trouble = Vec::new();
        if self.started {
            if let Err(why) = self.end_politely() {
                trouble.push(why);
            } else if self.stays() {
                trouble.extend(self.left().iter().map(|leak| format!("left behind: {leak}")));
            } else {
                seed::keep(&self.store);
            }
        }
        if !trouble.is_empty() || !self.started {
            self.end_by_force();
            self.stays();
        }
        if !trouble.is_empty() {
            trouble.push(format!("the server's log:\n{}", self.log()));
        }
        let path = self.dir().to_owned();
        if !leaks::mounts(&self.marker()).is_empty() {
            // Removing through a mount would remove what was mounted.
            let _ = self.dir.take().map(TempDir::keep);
            trouble.push(format!("kept because of a mount in it: {}", path.display()));
        } else if let Some(Err(error)) = self.dir.take().map(TempDir::close) {
            trouble.push(format!("remove {}: {error}", path.display()));
        }
        trouble
    }

    /// Whether anything is there still after the time in which it should vanish.
    fn stays(&self) -> bool {
        look_until(VANISH, || self.left().is_empty().then_some(())).is_none()
    }
}

/// The value of `key` of each object in a JSON list.
fn names(list: &[u8], key: &str) -> Result<Vec<String>, String> {
    let list: Vec<serde_json::Value> =
        serde_json::from_slice(list).map_err(|error| format!("a list of the API: {error}"))?;
    Ok(list.iter().filter_map(|item| item[key].as_str()).map(str::to_owned).collect())
}

/// Percent-encodes what does not stand for itself in a segment of a path (RFC 3986, 3.3).
fn encode(segment: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    segment
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).into() } else { format!("%{byte:02X}") })
        .collect()
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let trouble = self.finish();
        if trouble.is_empty() {
            return;
        }
        let report = format!("a test server did not end cleanly:\n{}\n", trouble.join("\n"));
        if std::thread::panicking() {
            let _ = std::io::stderr().write_all(report.as_bytes());
        } else {
            panic!("{report}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_fit_into_a_path() {
        assert_eq!(encode("localhost:5000/a/b:1.0"), "localhost%3A5000%2Fa%2Fb%3A1.0");
    }

    #[test]
    fn a_list_gives_the_values_of_one_key() {
        assert_eq!(
            names(br#"[{"id":"a"},{"x":1},{"id":"b"}]"#, "id"),
            Ok(vec!["a".into(), "b".into()])
        );
        assert!(names(b"{}", "id").is_err());
    }
}
