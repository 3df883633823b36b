"""The two ways to wait, and how one body of code serves both.

All of the package is written once, as coroutines over an :class:`IO`. Over :class:`Blocking` a
coroutine never suspends: whatever it awaits has happened when the call returns, so :func:`finish`
runs it to its end with a single ``send``. Over ``_asyncio.Asyncio`` it is a coroutine as any other.
"""

from __future__ import annotations

import functools
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")
A = TypeVar("A")

CHUNK = 64 * 1024
"""Bytes that are moved at once."""


class Lock(Protocol):
    """A lock for threads or for tasks."""

    async def acquire(self) -> None: ...

    async def try_acquire(self) -> bool: ...

    def release(self) -> None: ...


class IO(Protocol):
    """What the package needs of the world outside.

    Sockets are those that ``connect`` gave. Errors are ``OSError``.
    """

    async def connect(self, path: str) -> socket.socket: ...

    async def send(self, sock: socket.socket, data: bytes) -> None:
        """Sends all of it."""
        ...

    async def receive(self, sock: socket.socket, timeout: float | None) -> bytes:
        """Some bytes, or none at the end. ``TimeoutError`` after ``timeout`` seconds; no byte is
        lost by that, nor by a task that is cancelled."""
        ...

    async def ready(self, sock: socket.socket, *, read: bool) -> bool:
        """Waits until bytes can be sent or, with ``read``, received; tells whether the latter."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    async def offload(self, work: Callable[[], T]) -> T:
        """Does what takes long without this package."""
        ...

    def lock(self) -> Lock: ...


class Blocking:
    """Waits by system calls that wait."""

    async def connect(self, path: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return sock

    async def send(self, sock: socket.socket, data: bytes) -> None:
        sock.sendall(data)

    async def receive(self, sock: socket.socket, timeout: float | None) -> bytes:
        if timeout is not None:
            poll = select.poll()
            poll.register(sock, select.POLLIN)
            if not poll.poll(max(0.0, timeout) * 1000):
                raise TimeoutError
        return sock.recv(CHUNK)

    async def ready(self, sock: socket.socket, *, read: bool) -> bool:
        poll = select.poll()
        poll.register(sock, select.POLLOUT | (select.POLLIN if read else 0))
        return any(events & select.POLLIN for _, events in poll.poll())

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def offload(self, work: Callable[[], T]) -> T:
        return work()

    def lock(self) -> Lock:
        return _ThreadLock()


class _ThreadLock:
    def __init__(self) -> None:
        self._lock = threading.Lock()

    async def acquire(self) -> None:
        self._lock.acquire()

    async def try_acquire(self) -> bool:
        return self._lock.acquire(blocking=False)

    def release(self) -> None:
        self._lock.release()


def run_program(argv: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    """Runs a program to its end with nothing on stdin."""
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, cwd="/")


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine over :class:`Blocking` to its end."""
    try:
        work.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    work.close()
    raise TypeError("a callback or an iterable that must be awaited needs AsyncSandbox")


class Face(Generic[A]):
    """An object without ``await``: the asynchronous one, over :class:`Blocking`."""

    __slots__ = ("_async",)

    def __init__(self, of: A) -> None:
        self._async = of

    def __repr__(self) -> str:
        return repr(self._async).replace("Async", "", 1)


@overload
def blocking(
    op: Callable[Concatenate[A, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Face[A], P], T]: ...


@overload
def blocking(
    op: Callable[Concatenate[A, P], Coroutine[Any, Any, T]], into: Callable[[T], U]
) -> Callable[Concatenate[Face[A], P], U]: ...


def blocking(
    op: Callable[Concatenate[A, P], Coroutine[Any, Any, Any]],
    into: Callable[[Any], Any] | None = None,
) -> Callable[Concatenate[Face[A], P], Any]:
    """A method of a face: the asynchronous method ``op``, run to its end.

    ``into`` makes a face of what it returns.
    """
    if into is None:

        def method(self: Face[A], /, *args: P.args, **kwargs: P.kwargs) -> Any:
            return finish(op(self._async, *args, **kwargs))  # pyright: ignore[reportPrivateUsage]
    else:

        def method(self: Face[A], /, *args: P.args, **kwargs: P.kwargs) -> Any:
            return into(finish(op(self._async, *args, **kwargs)))  # pyright: ignore[reportPrivateUsage]

    return functools.wraps(op)(method)
