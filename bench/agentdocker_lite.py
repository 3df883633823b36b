"""Drives agentdocker-lite for `forkyard bench --peers`.

Called as `python3 -c PROGRAM VERSION ROOTFS STATE`. Requests and answers are lines of JSON:

    {"do": "hello"}                  {"times": {}}
    {"do": "life"}                   {"times": {"create": [25.1], "echo": [12.1, 12.2], ...}}
    {"do": "at_once", "count": 32}   {"times": {"wall": [1037.0]}}
    anything that fails              {"error": "why"}

Times are milliseconds. Steps are those of crates/forkyard/src/bench/life.rs, by the same names.
Ends with its stdin.
"""

import itertools
import json
import logging
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

VERSION, ROOTFS, STATE = sys.argv[1:4]
ECHOES, TRUES = 5, 3
FILE, CONTENTS = "/root/small", "x" * 1024

# Answers have stdout to themselves: what the library prints goes where its log goes.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
names = (f"bench-{os.getpid()}-{number}" for number in itertools.count())


def load():
    """Imports the library, and makes sure that it is the one that the goals are about."""
    from importlib.metadata import version

    import agentdocker_lite

    found = version("agentdocker-lite")
    if found != VERSION:
        raise RuntimeError(f"version {found} is installed, the goals are about {VERSION}")
    logging.disable(logging.CRITICAL)
    return agentdocker_lite


def create(library):
    config = library.SandboxConfig(image=ROOTFS, working_dir="/root", env_base_dir=STATE)
    return library.Sandbox(config, name=next(names))


def run(sandbox, line, expected):
    got = sandbox.run(line)
    if got != (expected, 0):
        raise RuntimeError(f"{line!r} came to {got!r}")


def life(library):
    """One sandbox from create to delete, each step timed."""
    times = {}

    def timed(step, act):
        start = time.perf_counter()
        result = act()
        times.setdefault(step, []).append((time.perf_counter() - start) * 1000)
        return result

    def create_and_echo():
        sandbox = timed("create", lambda: create(library))
        run(sandbox, "echo hello", "hello\n")
        return sandbox

    def reset_and_echo():
        timed("reset", sandbox.reset)
        run(sandbox, f"test ! -e {FILE} && echo hello", "hello\n")

    sandbox = timed("first_echo", create_and_echo)
    for _ in range(ECHOES):
        timed("echo", lambda: run(sandbox, "echo hello", "hello\n"))
    for _ in range(TRUES):
        timed("program", lambda: run(sandbox, "/bin/true", ""))
    timed("write", lambda: sandbox.write_file(FILE, CONTENTS))
    if timed("read", lambda: sandbox.read_file(FILE)) != CONTENTS:
        raise RuntimeError(f"{FILE} came back changed")
    timed("reset_echo", reset_and_echo)
    timed("delete", sandbox.delete)
    return times


def whole_life(library):
    sandbox = create(library)
    run(sandbox, "echo hello", "hello\n")
    sandbox.reset()
    sandbox.delete()


def at_once(library, count):
    """As many whole lives as asked for, begun together."""
    with ThreadPoolExecutor(count) as pool:
        start = time.perf_counter()
        lives = [pool.submit(whole_life, library) for _ in range(count)]
        for one in lives:
            one.result()
        return {"wall": [(time.perf_counter() - start) * 1000]}


def serve():
    library = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            library = library or load()
            if request["do"] == "life":
                answer = {"times": life(library)}
            elif request["do"] == "at_once":
                answer = {"times": at_once(library, request["count"])}
            else:
                answer = {"times": {}}
        except Exception as error:  # whatever it is, the bench has to know
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
    shutil.rmtree(STATE, ignore_errors=True)


serve()
