//! Programs that people sit before: shells with jobs, pagers, editors and prompts, forked while
//! somebody types.

use forkyard_testkit::{TestServer, find_program, skip, wait_for};

use super::fork;
use super::support::stream::Stream;
use super::support::{SOON, python_packages};
use super::terminals::attach;

/// A program of a sandbox on a terminal, which somebody types into.
struct Seat<'a> {
    server: &'a TestServer,
    id: String,
    keyboard: Stream,
}

impl<'a> Seat<'a> {
    /// Starts a program.
    #[track_caller]
    fn take(server: &'a TestServer, terminal: &str, argv: &[&str]) -> Self {
        Self::take_with(server, &[], &["-e", &format!("TERM={terminal}")], argv)
    }

    /// Starts a program, with options of `create` and of `exec`.
    #[track_caller]
    fn take_with(server: &'a TestServer, create: &[&str], exec: &[&str], argv: &[&str]) -> Self {
        let mut args = vec!["create"];
        args.extend(create);
        let id = server.ok(&args).trim().to_owned();
        let mut args = vec!["exec", "-d", "-t"];
        args.extend(exec);
        args.extend([&id, "--"]);
        args.extend(argv);
        assert_eq!(server.ok(&args).trim(), "1");
        let keyboard = attach(server, &id);
        Self { server, id, keyboard }
    }

    /// A shell with its prompt.
    #[track_caller]
    fn shell(server: &'a TestServer) -> Self {
        let mut seat = Self::take(server, "dumb", &["bash", "--norc", "--noprofile", "-i"]);
        seat.run("PS1='> '; echo a prompt'' is there", "a prompt is there");
        seat
    }

    /// The same after a fork, the original last: who sat there now sits there.
    #[track_caller]
    fn fork(self) -> Vec<Self> {
        let clones = fork(self.server, &self.id);
        let mut seats: Vec<_> = clones
            .into_iter()
            .map(|id| Self { server: self.server, keyboard: attach(self.server, &id), id })
            .collect();
        seats.push(self);
        seats
    }

    /// Types a line, and waits for what it leads to.
    #[track_caller]
    fn run(&mut self, line: &str, wanted: &str) -> String {
        self.press(&format!("{line}\n"), wanted)
    }

    /// Types, and waits for what that leads to.
    #[track_caller]
    fn press(&mut self, keys: &str, wanted: &str) -> String {
        self.keyboard.type_in(keys);
        self.keyboard.until(wanted)
    }

    /// Waits for the end, which must be a good one.
    #[track_caller]
    fn leave(self, keys: &str) {
        let Self { mut keyboard, .. } = self;
        keyboard.type_in(keys);
        let outcome = keyboard.finish();
        let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
        assert_eq!(outcome.exit.code, 0, "{:?}: {text}", outcome.exit);
    }
}

/// Ctrl-C, Ctrl-D and Ctrl-Z.
const INTERRUPT: &str = "\x03";
const END: &str = "\x04";
const SUSPEND: &str = "\x1a";

/// Says each line twice, which the terminal's own echo is not taken for.
const ECHO: &str = "sh -c 'while read line; do echo $line$line; done'";

#[test]
fn an_interactive_shell_keeps_its_jobs_in_each_fork() {
    let server = TestServer::start();
    let mut seat = Seat::shell(&server);
    seat.run("trap 'echo told' HUP TERM CONT; echo tr''apped", "trapped\r\n");
    seat.run(ECHO, "done'\r\n");
    seat.run("one", "oneone\r\n");
    seat.press(SUSPEND, "Stopped");
    // Says so when it is in the foreground.
    let watch = "sh -c 'while sleep 0.05; do read _ _ _ _ own _ _ front _ </proc/$$/stat; \
                 [ $own != $front ] || echo in front; done' & echo st''arted";
    seat.run(watch, "started\r\n");
    seat.run("(kill -STOP $BASHPID; echo on''ward) &", "&\r\n");
    let wait = "while [ $(cut -d ' ' -f 3 /proc/$!/stat) != T ]; do :; done; echo st''opped";
    seat.run(wait, "stopped\r\n");
    for mut seat in seat.fork() {
        let jobs = seat.run("jobs; echo all'' jobs", "all jobs\r\n");
        for (number, state, what) in
            [(1, "Stopped", "$line"), (2, "Running", "sleep"), (3, "Stopped", "( kill")]
        {
            let found = jobs.lines().any(|line| {
                line.starts_with(&format!("[{number}]"))
                    && line.contains(state)
                    && line.contains(what)
            });
            assert!(found, "[{number}] {state} {what} is not among: {jobs}");
        }
        // What it starts has the terminal, too.
        seat.run("/bin/echo another''program", "anotherprogram\r\n");
        seat.run("fg 1", "done'\r\n");
        seat.run("two", "twotwo\r\n");
        seat.press(SUSPEND, "Stopped");
        seat.run("fg 1", "done'\r\n");
        seat.run("three", "threethree\r\n");
        seat.press(END, "> ");
        seat.run("bg 3", "onward\r\n");
        seat.run("fg 2", "in front\r\n");
        seat.press(INTERRUPT, "> ");
        let rest = seat.run("wait; jobs; echo no'' jobs", "no jobs\r\n");
        assert!(!rest.contains("Running") && !rest.contains("Stopped"), "{rest}");
        seat.leave("exit 0\n");
    }
}

#[test]
fn a_job_in_the_foreground_is_suspended_and_brought_back_after_a_fork() {
    let server = TestServer::start();
    let mut seat = Seat::shell(&server);
    seat.run("sh -c 'while read line; do echo \"<$line>\"; done; exit 3'", "done; exit 3'\r\n");
    seat.run("one", "<one>\r\n");
    seat.press("tw", "tw");
    for mut seat in seat.fork() {
        seat.run("o", "<two>\r\n");
        seat.press(SUSPEND, "Stopped");
        seat.run("echo $((6 * 7))", "42\r\n");
        seat.run("fg", "exit 3'\r\n");
        seat.run("three", "<three>\r\n");
        seat.press(END, "> ");
        seat.run("echo st''atus $?", "status 3\r\n");
        seat.leave("exit 0\n");
    }
}

#[test]
fn a_pipeline_that_is_suspended_goes_on_in_each_fork() {
    let server = TestServer::start();
    let mut seat = Seat::shell(&server);
    let reader = "(cat; while read l; do echo $l$l; done </dev/tty)";
    seat.run(&format!("(echo zo''mbie) | {reader} | cat"), "zombie\r\n");
    seat.run("x", "xx\r\n");
    seat.press(SUSPEND, "Stopped");
    for mut seat in seat.fork() {
        seat.run("fg", "| cat\r\n");
        seat.run("y", "yy\r\n");
        seat.press(INTERRUPT, "> ");
        seat.run("echo st''atus $?", "status 130\r\n");
        seat.leave("exit 0\n");
    }
}

#[test]
fn a_half_typed_prompt_of_python_is_finished_in_each_fork() {
    if find_program("python3").is_none() {
        skip!("python3");
    }
    let server = TestServer::start();
    let mut seat = Seat::take(&server, "dumb", &["python3", "-i", "-q"]);
    seat.keyboard.until(">>> ");
    seat.run("import threading; state = {'count': 41}; lock = threading.Lock()", ">>> ");
    seat.run("def next(n):", "... ");
    seat.run("    state['count'] += n; return state['count']", "... ");
    seat.run("", ">>> ");
    seat.press("next(", "next(");
    for (n, mut seat) in seat.fork().into_iter().enumerate() {
        seat.run(&format!("{n}) + 1000"), &format!("{}\r\n>>> ", 1041 + n));
        seat.run("raise KeyboardInterrupt('by ' + 'hand')", "by hand\r\n>>> ");
        seat.run("print('loop' + 'ing'); exec('while 1: pass')", "looping\r\n");
        seat.press(INTERRUPT, "KeyboardInterrupt\r\n>>> ");
        seat.run("lock.locked(), threading.active_count()", "(False, 1)\r\n>>> ");
        seat.leave(END);
    }
}

#[test]
fn arrays_and_threads_of_numpy_go_on_at_a_prompt_in_each_fork() {
    let Some(packages) = python_packages() else { skip!("packages of Python: ./test gets them") };
    let server = TestServer::start();
    let volume = format!("{}:/opt/python:ro", packages.display());
    let environment =
        ["-e", "TERM=dumb", "-e", "PYTHONPATH=/opt/python", "-e", "OPENBLAS_NUM_THREADS=4"];
    let python = ["/usr/bin/python3", "-i", "-q"];
    let mut seat = Seat::take_with(&server, &["-v", &volume], &environment, &python);
    seat.keyboard.until(">>> ");
    seat.run("import numpy as np, os", ">>> ");
    seat.run("a = np.arange(640000.).reshape(800, 800); whole = (a @ a).sum()", ">>> ");
    seat.run("threads = lambda: len(os.listdir('/proc/self/task'))", ">>> ");
    // As many as there are processors, at most.
    let some = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(2);
    seat.run(&format!("before = threads(); print('ma' + 'ny', before >= {some})"), "many True");
    seat.run("random = np.random.default_rng(7); first = random.random()", ">>> ");
    for (n, mut seat) in seat.fork().into_iter().enumerate() {
        // The product is made by threads of the library, which wait for work.
        seat.run("(a @ a).sum() == whole, threads() == before", "True)\r\n>>> ");
        seat.run(&format!("a[0] = {n}; int(a[0].sum())"), &format!("\r\n{}\r\n>>> ", 800 * n));
        // Seeded by hand, each goes on from the same place.
        let same = "np.random.default_rng(7).random(2)[1] == random.random()";
        seat.run(&format!("print('sa' + 'me', bool({same}))"), "same True\r\n>>> ");
        seat.leave(END);
    }
}

#[test]
fn a_pager_stays_where_it_is_in_each_fork() {
    if find_program("less").is_none() {
        skip!("less");
    }
    let server = TestServer::start();
    let shell = "seq -f 'line %g' 1000 >/tmp/lines; exec less /tmp/lines";
    let mut seat = Seat::take(&server, "xterm", &["sh", "-c", shell]);
    seat.keyboard.until("line 23");
    seat.press("/line 500\n", "line 522");
    for mut seat in seat.fork() {
        seat.press("\n", "line 523");
        seat.press("/line 777\n", "line 799");
        seat.press("G", "(END)");
        seat.leave("q");
    }
}

#[test]
fn an_editor_keeps_what_is_not_saved_in_each_fork() {
    if find_program("vim").is_none() {
        skip!("vim");
    }
    let server = TestServer::start();
    let mut seat = Seat::take(&server, "xterm", &["vim", "-u", "NONE", "-N", "/root/text"]);
    seat.press("ifirst line\n", "first line");
    seat.press("second", "second");
    for (n, mut seat) in seat.fork().into_iter().enumerate() {
        seat.press(&format!(" line {n}"), &format!(" line {n}"));
        seat.press("\x1b:w\n", "written");
        let text = seat.server.ok(&["exec", &seat.id, "--", "cat", "/root/text"]);
        assert_eq!(text, format!("first line\nsecond line {n}\n"));
        // What was before the fork is undone.
        seat.press("uu:w\n", "written");
        seat.leave(":q!\n");
    }
}

#[test]
fn a_terminal_within_a_terminal_goes_on_in_each_fork() {
    if find_program("script").is_none() {
        skip!("script");
    }
    let server = TestServer::start();
    let shell = "bash --norc --noprofile -i";
    let mut seat = Seat::take(&server, "dumb", &["script", "-qc", shell, "/tmp/typescript"]);
    seat.run("PS1='> '; echo a prompt'' is there", "a prompt is there");
    seat.run(ECHO, "done'\r\n");
    seat.run("x", "xx\r\n");
    seat.press(SUSPEND, "Stopped");
    seat.press("echo ha", "echo ha");
    for mut seat in seat.fork() {
        seat.run("lf of $(tty)", "half of /dev/pts/1\r\n");
        seat.run("fg", "done'\r\n");
        seat.run("y", "yy\r\n");
        seat.press(INTERRUPT, "> ");
        seat.leave("exit 0\n");
    }
}

#[test]
fn panes_of_tmux_go_their_own_ways_in_each_fork() {
    if find_program("tmux").is_none() {
        skip!("tmux");
    }
    let server = TestServer::start();
    let shell = "env PS1='> ' x=0 bash --norc --noprofile";
    let mut seat =
        Seat::take(&server, "xterm", &["tmux", "-u", "-f", "/dev/null", "new-session", shell]);
    seat.keyboard.until("> ");
    seat.tmux(&["split-window", "-h", shell]);
    seat.tmux(&["split-window", "-v", shell]);
    let panes = ["0", "1", "2"];
    for pane in panes {
        seat.shows(pane, ">");
        seat.tmux(&["send-keys", "-t", pane, &format!("x=$((x + 1{pane}))")]);
    }
    for (n, mut seat) in seat.fork().into_iter().enumerate() {
        for pane in panes {
            let line = format!("; echo pa''ne $((x + 100 * {n}))");
            seat.tmux(&["send-keys", "-t", pane, &line, "Enter"]);
            seat.shows(pane, &format!("pane {n}1{pane}").replace(" 01", " 1"));
        }
        // The client is attached still, to the last pane.
        seat.press("echo ty''ped\n", "typed");
        seat.tmux(&["detach-client", "-s", "0"]);
        seat.keyboard.until("[detached");
        seat.tmux(&["kill-server"]);
    }
}

impl Seat<'_> {
    /// A command to the server of tmux.
    #[track_caller]
    fn tmux(&self, args: &[&str]) -> String {
        let mut all = vec!["exec", &self.id, "--", "tmux"];
        all.extend(args);
        self.server.ok(&all)
    }

    /// Waits for a text in a pane of tmux.
    #[track_caller]
    fn shows(&self, pane: &str, wanted: &str) {
        wait_for(&format!("{wanted} in pane {pane}"), SOON, || {
            self.tmux(&["capture-pane", "-p", "-t", pane]).contains(wanted)
        });
    }
}
