//! Programs that people run, forked live while they work, and looked at in the original and in each
//! clone: nothing that they had is lost, and each goes its own way.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod browser;
mod builds;
mod notebook;

use std::time::Duration;

use forkyard_engine::model::Fork;
use forkyard_testkit::{TestServer, find_program, is_single_id, skip, wait_for};
use support::{Sandbox, create};

/// How long a program may take to do its work, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The first of these programs that is not installed.
fn missing<'a>(programs: &[&'a str]) -> Option<&'a str> {
    programs.iter().find(|program| find_program(program).is_none()).copied()
}

/// Two clones and their original.
#[track_caller]
fn fork(source: Sandbox<'_>) -> Vec<Sandbox<'_>> {
    let server = source.server;
    let fork = server.ok(&["fork", "--json", &source.id, "-n", "2"]);
    let fork: Fork = serde_json::from_str(&fork).unwrap();
    let clones = fork.clones.iter().map(|clone| Sandbox { server, id: clone.id.to_string() });
    clones.chain([source]).collect()
}

/// Waits until a line of the session writes this.
#[track_caller]
fn until(sandbox: &Sandbox<'_>, line: &str, wanted: &str) {
    wait_for(&format!("`{line}` to write {wanted:?}"), PATIENCE, || sandbox.say(line) == wanted);
}

/// The number that a line of the session writes.
#[track_caller]
fn number(sandbox: &Sandbox<'_>, line: &str) -> u64 {
    let text = sandbox.say(line);
    text.trim().parse().unwrap_or_else(|_| panic!("`{line}` wrote {text:?}"))
}

#[test]
fn redis_serves_its_clients_on_with_all_data_in_each_clone() {
    if let Some(missing) = missing(&["redis-server", "redis-cli"]) {
        skip!("{missing}");
    }
    let server = TestServer::start();
    let source = create(&server, &[]);
    source.say("redis-server --save '' --dir /tmp >/tmp/log 2>&1 &");
    until(&source, "redis-cli ping 2>&1 || true", "PONG\n");
    let fill = "for i in $(seq 2000); do echo set key:$i value:$i; done | redis-cli | sort -u";
    assert_eq!(source.say(fill), "OK\n");
    // One connection that stays, and many that come and go.
    source.say("while :; do echo incr kept; sleep 0.005; done | redis-cli >/dev/null &");
    source.say("while :; do redis-cli incr many >/dev/null; done &");
    wait_for("the clients", PATIENCE, || {
        source.say("redis-cli exists kept") == "1\n"
            && number(&source, "redis-cli get many | grep . || echo 0") > 20
    });
    for (n, sandbox) in fork(source).iter().enumerate() {
        let (kept, many) =
            (number(sandbox, "redis-cli get kept"), number(sandbox, "redis-cli get many"));
        wait_for("both clients to go on", PATIENCE, || {
            number(sandbox, "redis-cli get kept") > kept
                && number(sandbox, "redis-cli get many") > many
        });
        assert_eq!(sandbox.say("redis-cli get key:1234; redis-cli dbsize"), "value:1234\n2002\n");
        assert_eq!(sandbox.say("redis-cli get who"), "\n", "another's data");
        sandbox.say(&format!("redis-cli set who {n}"));
    }
}

#[test]
fn a_node_server_under_load_answers_on_in_each_clone() {
    if let Some(missing) = missing(&["node", "curl"]) {
        skip!("{missing}");
    }
    let server = TestServer::start();
    let source = create(&server, &[]);
    source.say(
        "cat >/tmp/server.js <<'END'\n\
         let count = 0, name = 'nobody';\n\
         const kept = new Map(Array.from({ length: 50000 }, (_, n) => [n, { n }]));\n\
         require('http').createServer((asked, answer) => {\n\
           if (asked.url !== '/') name = asked.url.slice(1);\n\
           answer.end(`${++count} ${name} ${kept.get(49999).n}\\n`);\n\
         }).listen(8080, () => console.log('up'));\n\
         END\n\
         node /tmp/server.js >/tmp/up &",
    );
    until(&source, "cat /tmp/up 2>/dev/null || true", "up\n");
    source.say("for i in 1 2 3; do while :; do curl -s localhost:8080 >/dev/null; done & done");
    let count = "curl -s localhost:8080 | cut -d' ' -f1";
    wait_for("some load", PATIENCE, || number(&source, count) > 30);
    for (n, sandbox) in fork(source).iter().enumerate() {
        let before = number(sandbox, count);
        assert!(before > 30, "the count is {before}");
        wait_for("the load to go on", PATIENCE, || number(sandbox, count) > before + 10);
        let rest = sandbox.say(&format!("curl -s localhost:8080/{n} | cut -d' ' -f2-"));
        assert_eq!(rest, format!("{n} 49999\n"));
    }
}

#[test]
fn nginx_and_its_workers_serve_on_in_each_clone() {
    if let Some(missing) = missing(&["nginx", "curl"]) {
        skip!("{missing}");
    }
    if is_single_id() {
        skip!("more than one id");
    }
    let server = TestServer::start();
    let source = create(&server, &[]);
    source.say(
        "mkdir /tmp/www && cd /tmp && echo page >www/page && head -c 3000000 /dev/urandom >www/big\n\
         cat >nginx.conf <<'END'\n\
         daemon off; worker_processes 2; pid /tmp/nginx.pid; error_log /tmp/error.log;\n\
         events { worker_connections 64; }\n\
         http { access_log /tmp/access.log; client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy;\n\
           fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;\n\
           server { listen 8080; root /tmp/www; } }\n\
         END\n\
         nginx -c /tmp/nginx.conf 2>/tmp/said &",
    );
    until(&source, "curl -s localhost:8080/page || true", "page\n");
    source.say("for i in 1 2; do while :; do curl -s localhost:8080/page >/dev/null; done & done");
    // A download that is slow enough to be on its way at the fork.
    source.say("curl -s --limit-rate 1M localhost:8080/big >/tmp/got & slow=$!");
    let served = "wc -l </tmp/access.log";
    wait_for("some requests", PATIENCE, || number(&source, served) > 20);
    for sandbox in fork(source) {
        let before = number(&sandbox, served);
        wait_for("more requests", PATIENCE, || number(&sandbox, served) > before + 10);
        let line = "wait $slow; echo $?; cmp /tmp/got /tmp/www/big && echo same";
        assert_eq!(sandbox.line_within(PATIENCE, line).stdout, "0\nsame\n");
        // New workers, as the master makes them.
        sandbox.say("kill -HUP $(cat /tmp/nginx.pid); echo new >/tmp/www/page");
        until(&sandbox, "curl -s localhost:8080/page || true", "new\n");
    }
}

#[test]
fn postgres_keeps_committed_and_open_transactions_in_each_clone() {
    const BIN: &str = "/usr/lib/postgresql/15/bin";
    if !std::path::Path::new(BIN).join("postgres").exists() {
        skip!("postgresql-15");
    }
    if is_single_id() {
        skip!("more than one id");
    }
    let server = TestServer::start();
    let source = create(&server, &[]);
    source.say(&format!(
        "export PATH=$PATH:{BIN} PGHOST=/tmp PGUSER=guest PGDATABASE=postgres\n\
         as() {{ setpriv --reuid daemon --regid daemon --clear-groups -- \"$@\"; }}\n\
         mkdir /tmp/data && chown daemon:daemon /tmp/data && cd /tmp"
    ));
    let made =
        source.line_within(PATIENCE, "as initdb -U guest -A trust /tmp/data >/tmp/said 2>&1");
    assert_eq!(made.exit_code, 0, "{}", source.say("cat /tmp/said"));
    source.say("as postgres -D /tmp/data -k /tmp -h '' >/tmp/log 2>&1 &");
    until(&source, "pg_isready -q && echo up || true", "up\n");
    source.say("psql -qc 'create table lines (n serial, text text)'");
    // One client in the middle of a transaction, one that commits all the time.
    source.say("mkfifo /tmp/in; psql -q </tmp/in >/tmp/out 2>&1 & exec 7>/tmp/in");
    source.say("echo \"begin; insert into lines (text) values ('open');\" >&7");
    source.say(
        "while :; do echo \"insert into lines (text) values ('busy');\"; sleep 0.01; done \\\n\
         | psql -q >/dev/null &",
    );
    let busy = "psql -Atc \"select count(*) from lines where text = 'busy'\"";
    wait_for("some lines", PATIENCE, || number(&source, busy) > 20);
    for (n, sandbox) in fork(source).iter().enumerate() {
        let before = number(sandbox, busy);
        assert!(before > 20, "{before} lines");
        wait_for("more lines", PATIENCE, || number(sandbox, busy) > before + 5);
        let open = "psql -Atc \"select count(*) from lines where text <> 'busy'\"";
        assert_eq!(number(sandbox, open), 0, "another's lines, or some that are not committed");
        sandbox.say(&format!("echo \"insert into lines (text) values ('{n}'); commit;\" >&7"));
        wait_for("the commit", PATIENCE, || number(sandbox, open) == 2);
        assert_eq!(sandbox.say("cat /tmp/out; psql -Atc checkpoint"), "CHECKPOINT\n");
    }
}

/// Threads, a child that is talked to, an event loop, and a transaction that is not yet committed.
const PYTHON: &str = r#"
import asyncio, os, sqlite3, subprocess, threading
base = sqlite3.connect("/root/base.db", isolation_level=None)
base.execute("create table lines (n integer primary key, text)")
base.execute("insert into lines values (0, 'committed')")
base.execute("begin")
base.executemany("insert into lines values (?, ?)", [(n, str(n)) for n in range(1, 5000)])
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
counts, over = [0] * 4, threading.Event()
def work(n):
    while not over.is_set():
        counts[n] += 1
        over.wait(0.001)
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for thread in threads: thread.start()
async def tick(ticks):
    while True:
        await asyncio.sleep(0.001)
        ticks.append(1)
async def main():
    ticks = []
    ticking = asyncio.create_task(tick(ticks))
    open("/root/ready", "w").close()
    while not os.path.exists("/root/forked"): await asyncio.sleep(0.005)
    before = len(ticks), list(counts)
    await asyncio.sleep(0.2)
    assert len(ticks) > before[0], "the loop stands still"
    assert all(now > then for now, then in zip(counts, before[1])), "a thread stands still"
    ticking.cancel()
asyncio.run(main())
child.stdin.write(b"across the fork\n")
assert child.stdout.readline() == b"across the fork\n"
child.stdin.close()
assert child.wait() == 0
base.execute("commit")
other = sqlite3.connect("/root/base.db")
assert other.execute("select count(*), sum(n) from lines").fetchone() == (5000, 4999 * 2500)
over.set()
for thread in threads: thread.join()
print("whole")
"#;

#[test]
fn python_keeps_threads_children_event_loop_and_transaction() {
    if let Some(missing) = missing(&["python3"]) {
        skip!("{missing}");
    }
    let server = TestServer::start();
    let source = create(&server, &[]);
    source.say(&format!("cat >/root/program.py <<'END'\n{PYTHON}\nEND"));
    source.say("/usr/bin/python3 /root/program.py >/root/said 2>&1 & job=$!");
    until(&source, "test -e /root/ready && echo ready || cat /root/said", "ready\n");
    for sandbox in fork(source) {
        let line = "touch /root/forked; wait $job; echo $?; cat /root/said";
        assert_eq!(sandbox.line_within(PATIENCE, line).stdout, "0\nwhole\n");
    }
}
