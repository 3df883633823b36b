//! What becomes of a sandbox after its files became a layer: forks, resets, pauses, snapshots.

use forkyard_testkit::{TestServer, image_dir, wait_for};

use super::{MANY, MUCH, bases, clones, fork, sealed, sealed_clones, wait_for_trash};
use crate::support::{SOON, Sandbox, create};

#[test]
fn libraries_that_are_mapped_are_known_again_in_later_forks_and_copied_when_they_are_others() {
    let server = TestServer::start();
    let source = create(&server, &[]);
    source.say(&format!(
        "{MANY}; lib=$(ldconfig -p | sed -n 's/.*libm.so.6 .*=> //p' | head -n 1); cp $lib /made/libown.so; cp $lib /made/libother.so"
    ));
    let program = "
import ctypes, os
own, other = ctypes.CDLL('/made/libown.so'), ctypes.CDLL('/made/libother.so')
own.ldexp.restype = other.scalbn.restype = ctypes.c_double
os.mkfifo('/tmp/ask'); os.mkfifo('/tmp/told'); open('/tmp/ready', 'w')
while True:
    open('/tmp/ask').read()
    said = own.ldexp(ctypes.c_double(1.5), 3) + other.scalbn(ctypes.c_double(1.5), 1)
    open('/tmp/told', 'w').write(str(said))";
    source.start(&format!("exec python3 -c \"{program}\""));
    wait_for("the program", SOON, || source.sh("ls /tmp").contains("ready"));
    let more = |n: u32| {
        source.say(&format!("{MUCH} /made/m{n}"));
    };
    let works = |sandbox: &Sandbox<'_>| {
        assert_eq!(sandbox.say("echo >/tmp/ask; cat /tmp/told"), "15.0");
    };
    let first = fork(&source, &[]);
    let mut all = clones(&first, &server);
    for n in 0..2 {
        more(n);
        let next = fork(&source, &[]);
        assert!(sealed(&first) && sealed(&next));
        let (least, most) = (first.report.memory / 2, first.report.memory + (1 << 20));
        assert!((least..most).contains(&next.report.memory), "{:?}", next.report);
        all.extend(clones(&next, &server));
    }
    // Another file of the name, and the same file written over, which stays for who has it.
    source.say("cd /made; cp libown.so new; echo other >libother.so; mv new libown.so; echo broken >libown.so");
    more(2);
    all.extend(sealed_clones(&source, &[]));
    more(3);
    all.extend(sealed_clones(&source, &[]));
    all.extend(clones(&fork(&all[4], &[]), &server));
    works(&source);
    all.iter().for_each(works);
}

#[test]
fn forty_forks_with_much_written_before_each_keep_all_of_it() {
    let server = TestServer::start();
    let image = image_dir();
    server.ok(&["image", "import", image.path().to_str().unwrap(), "small"]);
    let source = create(&server, &["small"]);
    let mut last = None;
    let mut seals = 0;
    for n in 1..=40 {
        // A thousand files at times, and a large one else: what is many is slow to remove.
        let files = if n % 10 == 0 { 1000 } else { 20 };
        source.say(&format!(
            "mkdir -p /d/{n} && cd /d/{n} && {MUCH} /d/{n}/much
             for n in $(seq {files}); do echo {n} >$n; done; rm -f ../$(({n} - 1))/1"
        ));
        let fork = fork(&source, &[]);
        seals += u32::from(sealed(&fork));
        let clone = clones(&fork, &server).remove(0);
        if let Some(Sandbox { id, .. }) = last.replace(clone) {
            server.ok(&["rm", &id]);
        }
    }
    // Of the rest, each has its own copy: there are no more than so many layers.
    assert!((30..40).contains(&seals), "{seals}");
    let all = "find /d -type f | wc -l; cat /d/*/15 | md5sum; cat /d/40/1000; pwd
               ls /d/39/1 /d/40/1 2>/dev/null || :";
    let told = source.say(all);
    assert!(told.starts_with("4721\n") && told.ends_with("40\n/d/40\n/d/40/1\n"), "{told}");
    let last = last.unwrap();
    assert_eq!(last.say(all), told);
    server.ok(&["rm", &source.id]);
    assert_eq!(last.say(all), told);
    server.ok(&["rm", &last.id]);
    wait_for("all layers to go", SOON, || bases(&server) == 0);
    wait_for_trash(&server);
}

#[test]
fn a_reset_leaves_the_layer_to_those_who_have_it() {
    let server = TestServer::start();
    let source = create(&server, &[]);
    source.say(MANY);
    let all = sealed_clones(&source, &[]);
    server.ok(&["reset", &source.id]);
    assert_eq!(source.say("ls /made 2>/dev/null || echo none"), "none\n");
    assert_eq!(all[0].say("cat /made/many/1000"), "1000\n");
    source.say(MANY);
    let again = sealed_clones(&source, &[]);
    server.ok(&["rm", &all[0].id]);
    wait_for("the first layer to go", SOON, || bases(&server) == 1);
    for sandbox in [&source, &again[0]] {
        assert_eq!(sandbox.say("ls /made/many | wc -l"), "1000\n");
        server.ok(&["rm", &sandbox.id]);
    }
    wait_for("the second to go", SOON, || bases(&server) == 0);
}

#[test]
fn it_is_paused_kept_and_taken_over_as_any_other() {
    let mut server = TestServer::start();
    let id = {
        let source = create(&server, &[]);
        source.say(&format!("{MANY}; cd /made/many; x=kept; exec 7>>log; echo one >&7"));
        let all = sealed_clones(&source, &[]);
        source.say("echo two >&7; rm 1");
        server.ok(&["pause", &source.id]);
        server.ok(&["rm", &all[0].id]);
        server.ok(&["resume", &source.id]);
        assert_eq!(source.say("echo $x; cat log; ls | wc -l"), "kept\none\ntwo\n1000\n");
        // What was resumed has another root for its own; it becomes a layer, too.
        source.say(&format!("{MUCH} much; echo 7 >more-7"));
        sealed_clones(&source, &[]);
        source.id
    };
    server.kill9();
    server.restart();
    let source = Sandbox { server: &server, id };
    assert_eq!(
        source.say("echo three >&7; echo $x; cat log; ls | wc -l"),
        "kept\none\ntwo\nthree\n1002\n"
    );
    server.ok(&["snapshot", &source.id, "kept"]);
    server.ok(&["snapshot", "--files-only", &source.id, "files"]);
    let clone = clones(&fork(&source, &[]), &server).remove(0);
    server.ok(&["rm", &source.id]);
    let whole = create(&server, &["--from", "kept"]);
    for sandbox in [&clone, &whole] {
        assert_eq!(sandbox.say("echo $x; cat log; ls | wc -l"), "kept\none\ntwo\nthree\n1002\n");
    }
    let files = create(&server, &["--from", "files"]);
    assert_eq!(
        files.say("cd /made/many; cat log more-7; ls | wc -l"),
        "one\ntwo\nthree\n7\n1002\n"
    );
}
