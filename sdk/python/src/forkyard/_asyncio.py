"""Waiting by the event loop of asyncio, and whatever has its interface."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

from ._io import CHUNK, Lock

T = TypeVar("T")

_BACKLOG_WAIT = 10.0
"""Seconds that a server may take to accept connections when its queue is full."""

_BACKLOG_RETRY = 0.01


class Asyncio:
    """Waits by the running loop.

    Bytes are received by a call of our own once there are some, not by the loop: a task that is
    cancelled then loses none.
    """

    async def connect(self, path: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            tries = int(_BACKLOG_WAIT / _BACKLOG_RETRY)
            while (failed := sock.connect_ex(path)) == errno.EAGAIN and tries:
                tries -= 1
                await asyncio.sleep(_BACKLOG_RETRY)
            if failed:
                raise OSError(failed, f"connect {path}")
        except BaseException:
            sock.close()
            raise
        return sock

    async def send(self, sock: socket.socket, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[sock.send(rest) :]
            except BlockingIOError:
                await self.ready(sock, read=False)

    async def receive(self, sock: socket.socket, timeout: float | None) -> bytes:
        while True:
            try:
                return sock.recv(CHUNK)
            except BlockingIOError:
                if not await self._wait(sock, True, False, timeout):
                    raise TimeoutError from None

    async def ready(self, sock: socket.socket, *, read: bool) -> bool:
        await self._wait(sock, read, True, None)
        if not read:
            return False
        try:
            sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    async def _wait(
        self, sock: socket.socket, read: bool, write: bool, timeout: float | None
    ) -> bool:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[bool] = loop.create_future()

        def wake(ready: bool) -> None:
            if not woken.done():
                woken.set_result(ready)

        timer = None if timeout is None else loop.call_later(timeout, wake, False)
        try:
            if read:
                loop.add_reader(sock, wake, True)
            if write:
                loop.add_writer(sock, wake, True)
            return await woken
        finally:
            if read:
                loop.remove_reader(sock)
            if write:
                loop.remove_writer(sock)
            if timer is not None:
                timer.cancel()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def offload(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(None, work)

    def lock(self) -> Lock:
        return _TaskLock()


class _TaskLock:
    """A lock for each loop: what it guards, one program may use in loop after loop."""

    def __init__(self) -> None:
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            WeakKeyDictionary()
        )

    @property
    def _lock(self) -> asyncio.Lock:
        return self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    async def acquire(self) -> None:
        await self._lock.acquire()

    async def try_acquire(self) -> bool:
        lock = self._lock
        return not lock.locked() and await lock.acquire()

    def release(self) -> None:
        self._lock.release()
