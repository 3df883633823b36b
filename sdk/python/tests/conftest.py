"""What the tests share: sandboxes of a real server, which the environment leads to."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from forkyard import Client, Sandbox

T = TypeVar("T")

SOON = 30.0
"""Seconds that anything may take which should take milliseconds, on a machine that is busy."""


def until(what: str, happened: Callable[[], T]) -> T:
    """Asks until the answer is true."""
    deadline = time.monotonic() + SOON
    while not (answer := happened()):
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)
    return answer


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a test's coroutine; one that hangs fails."""
    return asyncio.run(asyncio.wait_for(work, 4 * SOON))


@pytest.fixture
def client() -> Iterator[Client]:
    with Client() as client:
        yield client


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox.create() as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def ids() -> None:
    """For tests that need more ids than one in a sandbox."""
    with Client() as client:
        if client.health().mode == "single":
            pytest.skip("more than one id needs subordinate ids")


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a server of the test's own, which it starts."""
    # Short: a socket is in it.
    store = (
        Path(os.environ.get("TMPDIR", "/tmp")) / f"own-{os.getpid()}-{time.monotonic_ns() % 10**6}"
    )
    with Client(store=store, socket=store / "sock") as client:
        try:
            yield client
        finally:
            # Starts one where the last was killed: what it left is for a server to remove.
            client.stop(sandboxes="delete")
            # Of what its processes still hold, the directory above takes care.
            shutil.rmtree(store, ignore_errors=True)
