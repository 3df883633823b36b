//! The kernel of a notebook, and a client that stays connected to it, forked between cells.

use forkyard_testkit::{TestServer, skip};

use super::support::{Sandbox, create, python_packages};
use super::{PATIENCE, fork};

/// Runs the cells `cell.N` one after the other, over connections that it keeps, and writes to
/// `out.N` what each came to.
const CLIENT: &str = r#"
import json, os, sys, time
from jupyter_client import BlockingKernelClient
def until(file):
    while not os.path.exists(file): time.sleep(0.005)
# The kernel writes it in place: it is there before it is whole.
def whole(file):
    try: return json.load(open(file))
    except (OSError, ValueError): return None
while not whole("kernel.json"): time.sleep(0.005)
client = BlockingKernelClient(connection_file="kernel.json")
client.load_connection_file()
client.start_channels()
client.wait_for_ready(timeout=60)
def run(cell):
    said = []
    def hear(message):
        content = message["content"]
        said.extend(content[key] for key in ("text", "evalue") if key in content)
        said.extend([content["data"]["text/plain"]] if "data" in content else [])
    reply = client.execute_interactive(cell, timeout=60, output_hook=hear)
    return reply["content"]["status"] + " " + "".join(said)
n = int(sys.argv[1])
while True:
    until(f"cell.{n}")
    with open("part", "w") as out: out.write(run(open(f"cell.{n}").read()))
    os.rename("part", f"out.{n}")
    n += 1
"#;

/// Has the client run a cell; what that came to.
#[track_caller]
fn cell(sandbox: &Sandbox<'_>, n: u32, code: &str) -> String {
    sandbox.say(&format!("cat >part.{n} <<'END'\n{code}\nEND\nmv part.{n} cell.{n}"));
    let line = format!("until [ -e out.{n} ]; do sleep 0.02; done; cat out.{n}");
    let said = sandbox.line_within(PATIENCE, &line);
    assert_eq!(said.exit_code, 0, "{said:?}: {}", sandbox.say("cat log.*"));
    said.stdout
}

#[test]
fn the_kernel_of_a_notebook_keeps_its_variables_in_each_clone() {
    let Some(packages) = python_packages() else { skip!("packages of Python: ./test gets them") };
    let server = TestServer::start();
    let source = create(&server, &["-v", &format!("{}:/opt/python:ro", packages.display())]);
    source.say(&format!("cat >/root/client.py <<'END'\n{CLIENT}\nEND"));
    // The history would be a database on disk, see docs/live-fork.md on what a program can notice.
    source.say(
        "cd /root; export PYTHONPATH=/opt/python\n\
         /usr/bin/python3 -m ipykernel_launcher -f /root/kernel.json \\\n\
           --HistoryManager.hist_file=:memory: >log.kernel 2>&1 &\n\
         /usr/bin/python3 client.py 0 >log.client 2>&1 & client=$!",
    );
    let first = "import os, threading, time\nkept = {'x': 41}; count = 0";
    assert_eq!(cell(&source, 0, first), "ok ");
    let background = "def work():\n    global count\n    while True:\n        count += 1\n        \
                      time.sleep(0.001)\nthreading.Thread(target=work, daemon=True).start()";
    assert_eq!(cell(&source, 1, background), "ok ");
    assert_eq!(cell(&source, 2, "kept['x'] += 1; kept['x']"), "ok 42");
    for (n, sandbox) in fork(source).iter().enumerate() {
        assert_eq!(
            cell(sandbox, 3, &format!("kept['x'] += {n}; kept")),
            format!("ok {{'x': {}}}", 42 + n)
        );
        let counts = "before = count\nwhile count < before + 20: time.sleep(0.001)\nprint('on')";
        assert_eq!(cell(sandbox, 4, counts), "ok on\n");
        assert_eq!(cell(sandbox, 5, "1 / 0"), "error division by zero");
        // One who comes anew finds the same.
        sandbox.say("kill $client; /usr/bin/python3 client.py 6 >log.other 2>&1 &");
        assert_eq!(cell(sandbox, 6, "print(kept['x'])"), format!("ok {}\n", 42 + n));
    }
}
