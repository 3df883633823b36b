"""What operations take through this package, beside agentdocker-lite where it is installed.

    python3 bench.py [--rounds N] [--peer ROOTFS]

``--peer`` needs root, ``pip install agentdocker-lite==0.0.3``, and the directory of a root file
system with a shell. Rounds go by turns, so that what else the machine does falls on both alike:
only the ratios mean something elsewhere. Times are medians in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import itertools
import logging
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

from forkyard import AsyncSandbox, Sandbox

T = TypeVar("T")

ECHOES, PROGRAMS, FILES = 20, 5, 20
CONTENTS = "x" * 1024


class Times:
    """How long each step took, in seconds."""

    def __init__(self) -> None:
        self._steps: defaultdict[str, list[float]] = defaultdict(list)

    def take(self, step: str, act: Callable[[], T]) -> T:
        begun = time.perf_counter()
        result = act()
        self.add(step, time.perf_counter() - begun)
        return result

    def add(self, step: str, seconds: float) -> None:
        self._steps[step].append(seconds)

    def median(self, step: str) -> float | None:
        """Milliseconds."""
        taken = self._steps.get(step)
        return statistics.median(taken) * 1000 if taken else None

    @property
    def steps(self) -> list[str]:
        return list(self._steps)


def ours(times: Times) -> None:
    """One sandbox from create to delete."""
    sandbox = times.take("create", Sandbox.create)
    sandbox.session.run("true")
    for _ in range(ECHOES):
        line = times.take("echo hello in the session", lambda: sandbox.session.run("echo hello"))
        assert line.stdout == "hello\n"
    for _ in range(PROGRAMS):
        times.take("/bin/true in the session", lambda: sandbox.session.run("/bin/true", check=True))
        times.take("a command: /bin/true", lambda: sandbox.commands.run(["/bin/true"], check=True))
    for _ in range(FILES):
        times.take("write 1 KiB", lambda: sandbox.files.write("/root/small", CONTENTS))
        read = times.take("read 1 KiB", lambda: sandbox.files.read("/root/small"))
        assert read == CONTENTS
    times.take("reset", sandbox.reset)
    assert sandbox.session.run("test ! -e /root/small && echo hello").stdout == "hello\n"
    times.take("delete", sandbox.delete)


def ours_with_await(times: Times) -> None:
    async def work() -> None:
        async with await AsyncSandbox.create() as sandbox:
            for _ in range(ECHOES):
                begun = time.perf_counter()
                await sandbox.session.run("echo hello")
                times.add("echo hello with await", time.perf_counter() - begun)

    asyncio.run(work())


class Peer:
    """The same steps with agentdocker-lite."""

    def __init__(self, rootfs: str, state: str) -> None:
        self._library: Any = importlib.import_module("agentdocker_lite")
        logging.disable(logging.CRITICAL)
        self._rootfs, self._state = rootfs, state
        self._names = (f"bench-{os.getpid()}-{number}" for number in itertools.count())

    def _create(self) -> Any:
        config = self._library.SandboxConfig(
            image=self._rootfs, working_dir="/root", env_base_dir=self._state
        )
        return self._library.Sandbox(config, name=next(self._names))

    def life(self, times: Times) -> None:
        sandbox = times.take("create", self._create)
        sandbox.run("true")
        for _ in range(ECHOES):
            said = times.take("echo hello in the session", lambda: sandbox.run("echo hello"))
            assert said == ("hello\n", 0)
        for _ in range(PROGRAMS):
            times.take("/bin/true in the session", lambda: sandbox.run("/bin/true"))
        for _ in range(FILES):
            times.take("write 1 KiB", lambda: sandbox.write_file("/root/small", CONTENTS))
            read = times.take("read 1 KiB", lambda: sandbox.read_file("/root/small"))
            assert read == CONTENTS
        times.take("reset", sandbox.reset)
        times.take("delete", sandbox.delete)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--peer", metavar="ROOTFS")
    options = parser.parse_args()
    own, other = Times(), Times()
    with tempfile.TemporaryDirectory() as state:
        peer = Peer(options.peer, state) if options.peer else None
        # The first ones make what later ones share.
        ours(Times())
        for _ in range(options.rounds):
            ours(own)
            ours_with_await(own)
            if peer is not None:
                peer.life(other)
    print(f"{'median ms':28} {'forkyard':>9} {'peer':>9} {'ratio':>7}")
    for step in own.steps:
        mine, theirs = own.median(step) or 0.0, other.median(step)
        row = f"{step:28} {mine:9.3f}"
        if theirs is not None and mine > 0:
            row += f" {theirs:9.3f} {theirs / mine:6.1f}x"
        print(row)


if __name__ == "__main__":
    main()
