//! A browser without a window, forked with its processes, and asked by its debugging port.

use std::path::Path;

use forkyard_testkit::{TestServer, is_root, skip, wait_for};

use super::support::{Sandbox, create};
use super::{PATIENCE, fork, missing, until};

/// The program itself: what starts it reads its options below /etc, which is not shown.
const CHROMIUM: &str = "/usr/lib/chromium/chromium";

/// Asks the page for what an expression comes to: `ask.py EXPRESSION`.
const ASK: &str = r#"
import base64, json, os, socket, struct, sys, urllib.request
def pages():
    listed = urllib.request.urlopen("http://localhost:9222/json", timeout=20)
    return [page for page in json.load(listed) if page["type"] == "page"]
path = pages()[0]["webSocketDebuggerUrl"].split("9222", 1)[1]
line = socket.create_connection(("localhost", 9222), 20)
key = base64.b64encode(os.urandom(16)).decode()
line.sendall((f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n").encode())
stream = line.makefile("rb")
while stream.readline() != b"\r\n": pass
asked = {"id": 1, "method": "Runtime.evaluate",
    "params": {"expression": sys.argv[1], "awaitPromise": True, "returnByValue": True}}
text = json.dumps(asked).encode()
# RFC 6455: a text in one frame, masked with nothing.
line.sendall(b"\x81\xfe" + struct.pack(">H", len(text)) + bytes(4) + text)
kind, length = stream.read(2)
if length == 126: length = struct.unpack(">H", stream.read(2))[0]
print(json.loads(stream.read(length))["result"]["result"].get("value"))
"#;

#[track_caller]
fn ask(sandbox: &Sandbox<'_>, expression: &str) -> String {
    sandbox.say(&format!("/usr/bin/python3 /root/ask.py '{expression}'"))
}

#[test]
fn an_open_page_of_a_browser_goes_on_in_each_clone() {
    if let Some(missing) = missing(&["python3", "chromium"]) {
        skip!("{missing}");
    }
    if !Path::new(CHROMIUM).exists() {
        skip!("{CHROMIUM}");
    }
    if !is_root() {
        skip!("done as root alone: a browser takes seconds");
    }
    let server = TestServer::start();
    let source = create(&server, &[]);
    source.say(&format!("cat >/root/ask.py <<'END'\n{ASK}\nEND"));
    source.say(
        "mkdir /tmp/www; cd /tmp/www; echo text >file\n\
         echo '<title>page</title><script>let n = 0; const kept = new Map();\
         setInterval(() => n++, 5)</script>' >index.html\n\
         /usr/bin/python3 -m http.server 8000 >/dev/null 2>&1 &",
    );
    until(&source, "curl -s localhost:8000/file || true", "text\n");
    source.say(&format!(
        "{CHROMIUM} --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \\\n\
           --disable-background-networking --disable-component-update --disable-sync \\\n\
           --user-data-dir=/root/profile --remote-debugging-port=9222 http://localhost:8000/ \\\n\
           >/root/log 2>&1 </dev/null &"
    ));
    until(&source, "/usr/bin/python3 /root/ask.py document.title 2>/dev/null || true", "page\n");
    assert_eq!(ask(&source, "kept.set(\"x\", 41).size"), "1\n");
    for (n, sandbox) in fork(source).iter().enumerate() {
        let add = format!("kept.set(\"x\", kept.get(\"x\") + {n}).get(\"x\")");
        assert_eq!(ask(sandbox, &add), format!("{}\n", 41 + n));
        let before: u64 = ask(sandbox, "n").trim().parse().unwrap();
        wait_for("the page's timer to go on", PATIENCE, || {
            ask(sandbox, "n").trim().parse::<u64>().unwrap() > before
        });
        // By way of another process of the browser, which connects anew.
        let fetched = "fetch(\"/file\").then(answer => answer.text())";
        assert_eq!(ask(sandbox, fetched), "text\n\n");
        assert_eq!(ask(sandbox, "kept.get(\"x\") + document.title"), format!("{}page\n", 41 + n));
    }
}
