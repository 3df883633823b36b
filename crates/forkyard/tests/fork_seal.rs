//! Forks of sandboxes whose files become a layer of their own while they run: what goes on where it
//! was, what is moved, what is in the way, and who is killed meanwhile.

#![allow(clippy::unwrap_used)]

#[path = "fork_seal/in_the_way.rs"]
mod in_the_way;
#[path = "fork_seal/kills.rs"]
mod kills;
#[path = "fork_seal/later.rs"]
mod later;
mod support;

use std::fs;
use std::time::Duration;

use forkyard_engine::model::Fork;
use forkyard_testkit::{TestServer, image_dir, wait_for};
use support::{SOON, Sandbox, create};

/// So many files that they become a layer, or are shared after they were copied.
const MANY: &str = "mkdir -p /made/many; for n in $(seq 1000); do echo $n >/made/many/$n; done";

/// The same, with the name of a file behind it: blocks that are neither written nor copied.
const MUCH: &str = "fallocate -l 17M";

#[track_caller]
fn fork(sandbox: &Sandbox<'_>, options: &[&str]) -> Fork {
    let mut args = vec!["fork", "--json", sandbox.id.as_str()];
    args.extend(options);
    serde_json::from_str(&sandbox.server.ok(&args)).unwrap()
}

/// Whether what the original wrote became a layer, and was not copied.
fn sealed(fork: &Fork) -> bool {
    fork.report.stop.iter().any(|phase| phase.name == "seal")
}

fn clones<'a>(fork: &Fork, server: &'a TestServer) -> Vec<Sandbox<'a>> {
    let clones = fork.clones.iter();
    clones.map(|clone| Sandbox { server, id: clone.id.to_string() }).collect()
}

/// Clones of a sandbox whose files become a layer.
#[track_caller]
fn sealed_clones<'a>(sandbox: &Sandbox<'a>, options: &[&str]) -> Vec<Sandbox<'a>> {
    let fork = fork(sandbox, options);
    assert!(sealed(&fork), "{:?}", fork.report);
    clones(&fork, sandbox.server)
}

/// How many layers there are that sandboxes share.
fn bases(server: &TestServer) -> usize {
    fs::read_dir(server.store().join("bases")).unwrap().count()
}

/// Waits until all that was thrown away is removed: tens of thousands of files are slow to go on a
/// disk that others use.
#[track_caller]
fn wait_for_trash(server: &TestServer) {
    let trash = server.store().join("trash");
    wait_for("the trash to be emptied", Duration::from_secs(180), || {
        fs::read_dir(&trash).unwrap().count() == 0
    });
}

/// Files of many kinds, and what became of those of the image.
const WRITE: &str = "
    mkdir -p /made/deep/er /made/gone /made/moved-from; cd /made
    for n in $(seq 600); do echo $n >file-$n; echo $n >deep/er/$n; done
    ln file-1 deep/one; ln file-1 deep/er/uno; ln -s ../file-2 deep/two; mkfifo deep/fifo
    dd if=/dev/urandom of=sparse bs=4096 count=3 seek=2000 2>/dev/null; truncate -s 64M sparse
    chmod 4711 file-3; chmod 700 deep/er; touch -d '2001-02-03 04:05:06' file-4 deep
    for n in $(seq 20); do echo $n >moved-from/$n; done; mv moved-from deep/moved
    echo x >gone/x; rm -r gone; mkdir gone; rm file-5 /bin/vi
    echo more >>/etc/passwd; rm -r /etc; mkdir /etc; echo fresh >/etc/fresh; cd deep/er";

/// All that can be seen of it.
const SHOW: &str = "
    (cd /; find /made /etc /bin | sort | xargs stat -c '%N %F %a %u:%g'
    find /made /etc /bin ! -type d | sort | xargs stat -c '%n %s %h'
    find /made /etc /bin -type f | sort | xargs stat -c %Y
    find /made /etc -type f | sort | xargs md5sum
    stat -c '%i' /made/file-1 /made/deep/one /made/deep/er/uno | uniq | wc -l); pwd";

#[test]
fn files_are_the_same_in_original_and_clones_which_go_their_own_ways() {
    let server = TestServer::start();
    let image = image_dir();
    server.ok(&["image", "import", image.path().to_str().unwrap(), "small"]);
    for leaves_first in 0..3 {
        let source = create(&server, &["small"]);
        source.say(WRITE);
        let before = source.say(SHOW);
        assert!(before.contains("/made/deep/fifo") && before.ends_with("1\n/made/deep/er\n"));
        let mut all = sealed_clones(&source, &["-n", "2"]);
        assert_eq!(bases(&server), 1);
        let nested = clones(&fork(&all[0], &[]), &server).remove(0);
        all.push(source);
        for sandbox in all.iter().chain([&nested]) {
            assert_eq!(sandbox.say(SHOW), before);
        }
        for (n, sandbox) in all.iter().enumerate() {
            sandbox.say(&format!("echo {n} >>../one; rm /made/file-2; mkdir /made/own-{n}"));
        }
        for (n, sandbox) in all.iter().enumerate() {
            let told = sandbox
                .say("cat /made/file-1 uno; ls -d /made/own-*; ls /made/file-2 2>/dev/null ||:");
            assert_eq!(told, format!("1\n{n}\n1\n{n}\n/made/own-{n}\n"));
        }
        server.ok(&["rm", &all.remove(leaves_first).id]);
        for sandbox in &all {
            let told = sandbox.say("cat 600 /made/deep/moved/20; ls /made | wc -l");
            assert_eq!(told, "600\n20\n602\n");
            server.ok(&["rm", &sandbox.id]);
        }
        assert_eq!(nested.say(SHOW), before);
        server.ok(&["rm", &nested.id]);
        wait_for("layers that nobody has to go", SOON, || bases(&server) == 0);
    }
}

/// Has files open in many ways, in two processes that share them, and tells by commands from a
/// fifo.
const HOLDER: &str = r"
import os, sys
os.makedirs('/made/a/b', exist_ok=True)
open('/made/text', 'w').write('one\ntwo\nthree\n')
read = os.open('/made/text', os.O_RDONLY); os.read(read, 4)
log = os.open('/made/log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
both = os.open('/made/both', os.O_RDWR | os.O_CREAT); os.write(both, b'0123456789'); os.lseek(both, 3, 0)
same = os.dup(both)
place = os.open('/made/a', os.O_RDONLY | os.O_DIRECTORY)
path = os.open('/made/a/b', os.O_PATH)
image = os.open('/etc/hostname', os.O_RDONLY)
kept = os.open('/made/log', os.O_RDONLY); os.set_inheritable(kept, True)
fill = [os.open('/made/fill', os.O_RDONLY | os.O_CREAT) for n in range(60)]
os.chdir('/made/a/b')
os.mkfifo('/tmp/ask'); os.mkfifo('/tmp/told')
child = os.fork()
name = '/tmp/ask' if child else '/tmp/ask-child'
if not child:
    os.mkfifo('/tmp/ask-child')
while True:
    for line in open(name):
        try:
            said = str(eval(line))
        except Exception as error:
            said = repr(error)
        open('/tmp/told', 'w').write(said + '\n')
";

/// A sandbox in which [`HOLDER`] runs.
fn holder(server: &TestServer) -> Sandbox<'_> {
    let sandbox = create(server, &[]);
    sandbox.say(MANY);
    sandbox.start(&format!("exec python3 -c \"{HOLDER}\""));
    sandbox.say("while [ ! -e /tmp/ask-child ]; do sleep 0.01; done");
    sandbox
}

/// Has one of the two evaluate an expression.
#[track_caller]
fn ask(sandbox: &Sandbox<'_>, who: &str, what: &str) -> String {
    sandbox.say(&format!("echo \"{what}\" >/tmp/{who}; cat /tmp/told")).trim_end().to_owned()
}

/// What is open goes on where it was, and shares what it shared.
#[track_caller]
fn goes_on(sandbox: &Sandbox<'_>) {
    assert_eq!(ask(sandbox, "ask", "os.read(read, 4)"), "b'two\\n'");
    assert_eq!(ask(sandbox, "ask-child", "os.read(read, 9)"), "b'three\\n'");
    assert_eq!(ask(sandbox, "ask-child", "os.write(same, b'abc')"), "3");
    assert_eq!(ask(sandbox, "ask", "os.lseek(both, 0, 1)"), "6");
    assert_eq!(ask(sandbox, "ask", "os.pread(both, 20, 0)"), "b'012abc6789'");
    assert_eq!(sandbox.sh("cat /made/both"), "012abc6789");
    for who in ["ask", "ask-child"] {
        assert_eq!(ask(sandbox, who, "os.write(log, b'x')"), "1");
        assert_eq!(ask(sandbox, who, "os.getcwd()"), "/made/a/b");
        let made = ask(sandbox, who, &format!("open('{who}', 'w').write('me')"));
        assert_eq!(made, "2");
        assert_eq!(
            ask(sandbox, who, "os.get_inheritable(kept), os.get_inheritable(read)"),
            "(True, False)"
        );
        assert_eq!(ask(sandbox, who, "os.fstat(path).st_ino == os.stat('.').st_ino"), "True");
    }
    assert_eq!(sandbox.sh("cat /made/log; ls /made/a/b"), "xxask\nask-child\n");
    assert_eq!(ask(sandbox, "ask", "os.read(kept, 9)"), "b'xx'");
    assert_eq!(ask(sandbox, "ask", "os.listdir(place)"), "['b']");
    assert_eq!(
        ask(sandbox, "ask", "os.fstat(fill[59]).st_ino == os.stat('/made/fill').st_ino"),
        "True"
    );
    let left = "sorted(os.readlink('/proc/self/fd/' + n)[:9] for n in os.listdir('/proc/self/fd'))";
    assert!(!ask(sandbox, "ask", left).contains("socket:"));
}

#[test]
fn what_is_open_goes_on_where_it_was_and_shares_what_it_shared() {
    let server = TestServer::start();
    let source = holder(&server);
    let all = sealed_clones(&source, &["-n", "2"]);
    goes_on(&source);
    all.iter().for_each(goes_on);
    // Once more, with what has been opened above a layer.
    source.say(&format!("{MUCH} /made/more"));
    let again = sealed_clones(&source, &[]);
    for sandbox in [&source, &again[0]] {
        assert_eq!(ask(sandbox, "ask", "os.pread(both, 20, 0)"), "b'012abc6789'");
        assert_eq!(ask(sandbox, "ask-child", "os.write(log, b'y')"), "1");
        assert_eq!(ask(sandbox, "ask", "os.read(kept, 9)"), "b'y'");
        assert_eq!(sandbox.sh("cat /made/log"), "xxy");
    }
}

#[test]
fn a_directory_that_one_may_not_walk_to_is_still_where_one_is() {
    let server = TestServer::start();
    let source = create(&server, &[]);
    source.say(&format!(
        "{MANY}; mkdir -p /made/hidden/here; chmod 777 /made/hidden/here; cd /made/hidden/here; \
         chmod 700 /made; chmod 700 /made/hidden; exec 7<."
    ));
    let all = sealed_clones(&source, &[]);
    for sandbox in [&source, &all[0]] {
        let told =
            sandbox.say("pwd; echo me >file; cat /made/hidden/here/file /proc/self/fd/7/file");
        assert_eq!(told, "/made/hidden/here\nme\nme\n");
    }
}

#[test]
fn a_program_among_the_files_goes_on_and_finds_itself() {
    let server = TestServer::start();
    let source = create(&server, &[]);
    source.say(&format!("{MANY}; cp $(readlink -f /bin/bash) /made/own; cd /made"));
    let number = source.start("exec /made/own -c '>/tmp/up; while [ ! -e /tmp/go ]; do sleep 0.01; done; exec /proc/$$/exe -c \"readlink /proc/self/exe; echo it is $0\"'");
    wait_for("the program", SOON, || source.sh("ls /tmp").contains("up"));
    let mut all = sealed_clones(&source, &[]);
    source.say(&format!("{MUCH} /made/more"));
    all.extend(sealed_clones(&source, &[]));
    all.push(source);
    for sandbox in &all {
        sandbox.say(">/tmp/go");
        assert_eq!(sandbox.wait(number).code, 0);
        let said = server.ok(&["logs", &sandbox.id, &number.to_string()]);
        assert!(said.ends_with("it is /made/own\n"), "{said}");
        // The session's shell is of the image.
        assert_eq!(sandbox.say("/proc/$$/exe -c 'echo again'"), "again\n");
    }
}
