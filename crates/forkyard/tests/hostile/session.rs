//! The session's descriptors, which its lines can reach.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::arena::{Guest, PATIENCE, text};
use crate::case::cases;

cases! {
    forged_ends_of_lines: "messages of completion with wrong and right numbers, garbage, no newline"
        => "what is not of the form or of another line is passed over", forged;
    filling_the_trigger: "stopping the shell and filling the pipe by which lines are announced"
        => "the server never waits for it", trigger;
    answers_that_grow: "16 MiB of bytes that become 70 MiB as text in JSON, in each stream of a \
        line, and a directory of 20,000 names of 240 control characters"
        => "long answers are made on a thread where nobody else waits", long_answers;
    flooding_behind_a_line: "jobs that write to stdout, and to the pipe of completion, without end, \
        while lines run; a line that does so itself past its time"
        => "the server takes what was there at the line's end, a part at a time, and looks at the \
            clock between", behind;
    changing_the_line: "truncating, growing, sealing and appending to the file that lines come in"
        => "the server writes it anew for each line, never maps it", line_file;
    closing_the_sessions_descriptors: "closing 0, 1, 2 and the session's three"
        => "time limit; the next line gets a new shell", closing;
    ending_the_shell: "killing the shell, executing over it, exiting, stopping it"
        => "init tells of its end; the next line gets a new shell", ending;
}

fn line(guest: &Guest, line: &str) -> Value {
    guest.session(line, Duration::from_secs(3))
}

/// A session that works, whatever came before.
#[track_caller]
fn check_works(guest: &Guest) {
    let mut answer = Value::Null;
    // The line that finds its shell gone says so.
    for _ in 0..3 {
        answer = line(guest, "echo works");
        if answer["stdout"] == "works\n" {
            return;
        }
    }
    panic!("no session any more: {answer}");
}

fn forged(guest: &Guest) {
    for forged in [
        "for i in $(seq 200); do echo \"$i 0 0\" >&252; done",
        "head -c 60000 /dev/zero | tr '\\0' 9 >&252",
        "printf '1 0 0\\n\\377\\376 99999999999999999999 -1\\n' >&252; printf '%s' partial >&252",
        "echo \"$__forkyard_line 7 0\" >&252",
    ] {
        line(guest, forged);
        check_works(guest);
        let answer = line(guest, "(exit 3)");
        assert_eq!(answer["exit_code"], 3, "after {forged}: {answer}");
    }
}

fn trigger(guest: &Guest) {
    // Another process of the sandbox finds the shell, stops it and fills its pipe.
    let fill = "p=$(pgrep -o -P 1 bash || pgrep -o -P 1 sh); kill -STOP $p; \
                timeout 2 head -c 9999999 /dev/zero >/proc/$p/fd/251; echo filled";
    assert!(guest.sh(fill).contains("filled"));
    for _ in 0..4 {
        // As many as the server has threads, and more.
        line(guest, "echo lost");
        guest.arena.check_neighbour();
    }
    let (status, body) = guest.arena.http().delete(&guest.url("session"));
    assert_eq!(status, 204, "{}", text(&body));
    check_works(guest);
}

fn behind(guest: &Guest) {
    for flood in ["yes", "yes >&2"] {
        line(guest, &format!("{flood} & p=$!"));
        for _ in 0..3 {
            let answer = line(guest, "echo works >&2; (exit 3)");
            assert_eq!(answer["exit_code"], 3, "beside {flood}");
            guest.arena.check_neighbour();
        }
        line(guest, "kill $p; wait");
        let answer = line(guest, "timeout 60 yes");
        assert_eq!(answer["timed_out"], true, "{}", answer["exit_code"]);
        check_works(guest);
    }
    // Here a line's own end may be torn to pieces, which is the guest's loss: its time ends it.
    for flood in ["yes '1 0 0' >&252", "tr '\\0' 7 </dev/zero >&252"] {
        line(guest, &format!("{flood} & p=$!"));
        let answer = line(guest, "(exit 3)");
        let right = answer["exit_code"] == 3 || answer["timed_out"] == true;
        assert!(right, "beside {flood}: {answer}");
        guest.arena.check_neighbour();
        let (status, _) = guest.arena.http().delete(&guest.url("session"));
        assert_eq!(status, 204);
        check_works(guest);
    }
}

fn line_file(guest: &Guest) {
    let change = "import fcntl,os\nfd=os.open('/proc/self/fd/250',os.O_RDWR)\n\
        os.ftruncate(fd,1<<40)\n\
        fcntl.fcntl(250,fcntl.F_SETFL,os.O_APPEND|os.O_NONBLOCK)\n\
        try:\n fcntl.fcntl(fd,1033,0xf)\nexcept OSError as e:\n print(e.errno)\n\
        os.lseek(250,0,2)";
    let answer = line(guest, &format!("python3 - <<'END'\n{change}\nEND"));
    // EPERM: it was made without seals to add.
    assert_eq!(answer["stdout"], "1\n", "{answer}");
    let (status, _) = guest.arena.http().delete(&guest.url("session"));
    assert_eq!(status, 204);
    check_works(guest);
}

fn closing(guest: &Guest) {
    for close in [
        "exec 0<&- 1>&- 2>&-",
        "exec 250<&-",
        "exec 252>&-",
        "exec 251<&-",
        "exec 0<&- 1>&- 2>&- 250<&- 251<&- 252>&-",
    ] {
        line(guest, close);
        let (status, _) = guest.arena.http().delete(&guest.url("session"));
        assert_eq!(status, 204);
        check_works(guest);
    }
}

fn ending(guest: &Guest) {
    for end in ["kill -9 $$", "exec true", "exit 5", "exec sleep 600", "kill -STOP $$"] {
        let answer = line(guest, end);
        let told = answer["shell_ended"] == true || answer["timed_out"] == true;
        assert!(told, "{end}: {answer}");
        check_works(guest);
    }
}

fn long_answers(guest: &Guest) {
    guest.sh("mkdir /root/names; cd /root/names; \
         n=$(head -c 230 /dev/zero | tr '\\0' '\\001'); seq 20000 | sed \"s/^/$n/\" | xargs touch");
    let bytes = "head -c 17000000 /dev/zero | tr '\\0' '\\377'";
    let line = format!("{bytes}; {bytes} >&2");
    let session = || {
        let answer = guest.session(&line, PATIENCE);
        assert_eq!(answer["truncated"], true);
    };
    let listing = || {
        let (status, body) = guest.arena.http().get(&guest.url("list?path=/root/names"));
        assert_eq!(status, 200);
        assert!(body.len() > 20_000_000, "{} bytes", body.len());
    };
    others_are_answered_during("a line", &session);
    others_are_answered_during("a listing", &listing);
}

/// Somebody else's answer takes less than half as long, unless the machine is busy time and again.
#[track_caller]
fn others_are_answered_during(what: &str, long: &(dyn Fn() + Sync)) {
    let arena = crate::arena::Arena::shared();
    let mut seen = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        let worst = std::thread::scope(|scope| {
            let asking = scope.spawn(long);
            let mut worst = Duration::ZERO;
            while !asking.is_finished() {
                let asked = Instant::now();
                assert_eq!(arena.http().get("/v1/health").0, 200);
                worst = worst.max(asked.elapsed());
            }
            worst
        });
        let took = started.elapsed();
        if worst * 2 < took {
            return;
        }
        seen.push((worst, took));
    }
    panic!("{what}: others waited, of the time that it took: {seen:?}");
}
