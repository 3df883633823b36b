//! The session's descriptors, which its lines can reach.

use std::time::Duration;

use serde_json::Value;

use crate::arena::{Guest, text};
use crate::case::cases;

cases! {
    forged_ends_of_lines: "messages of completion with wrong and right numbers, garbage, no newline"
        => "what is not of the form or of another line is passed over", forged;
    filling_the_trigger: "stopping the shell and filling the pipe by which lines are announced"
        => "the server never waits for it", trigger;
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
