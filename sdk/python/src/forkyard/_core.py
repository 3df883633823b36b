"""Connections to one server: kept for the next request, and a server that is started on demand."""

from __future__ import annotations

import atexit
import json
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

from . import errors
from ._http import CHUNKED, LAST_CHUNK, UPGRADE, Answer, Closed, answer, chunk, request
from ._io import IO, run_program
from ._paths import Paths, find_program, resolve
from .errors import InvalidRequest, ServerGone, Timeout

Pieces = Callable[[], Awaitable[bytes]]
"""Gives a body bit by bit, and nothing at its end."""

_IDLE_MAX = 20.0
"""Seconds that a connection is kept without use; the server closes it after 30."""

_KEPT_MAX = 32
"""Connections that are kept at most."""

_TRIES = 100
"""How often a server is asked that ends before it takes the request ..."""

_RETRY = 0.02
"""... and seconds between these."""

FOREVER = float("inf")
"""For an answer that comes when something has ended."""


class Core:
    """What every object of one server uses."""

    __slots__ = ("_idle", "_pid", "_starting", "io", "paths", "start", "timeout")

    def __init__(self, io: IO, paths: Paths, *, start: bool, timeout: float | None) -> None:
        self.io = io
        self.paths = paths
        self.start = start
        self.timeout = timeout
        self._idle: list[tuple[socket.socket, float]] = []
        self._pid = os.getpid()
        self._starting = io.lock()

    async def ask(
        self, method: str, target: str, body: bytes = b"", *, timeout: float | None = None
    ) -> bytes:
        """Sends a request, and gives the body of its answer.

        ``timeout`` is how long the server may be silent, in seconds, in place of the client's own.

        Raises:
            ForkyardError: the server refused, or could not be asked.
        """
        sock, got = await self._exchange(method, target, body, timeout)
        return await self._finish(sock, got, timeout)

    async def ask_json(
        self, method: str, target: str, fields: Any = None, *, timeout: float | None = None
    ) -> Any:
        """The same with JSON in both directions."""
        body = b"" if fields is None else json.dumps(fields).encode()
        return parsed(await self.ask(method, target, body, timeout=timeout))

    async def ask_last(self, method: str, target: str) -> None:
        """The same for what ends the server: returns when it has closed the connection."""
        sock, got = await self._exchange(method, target, b"", None)
        if not 200 <= got.status < 300:
            await self._finish(sock, got, None)
        try:
            while await self.io.receive(sock, self.timeout):
                pass
        except TimeoutError as error:
            raise Timeout("the server has not ended in time") from error
        except OSError:
            pass
        finally:
            sock.close()
            self.close()

    async def download(self, method: str, target: str, body: bytes = b"") -> Download:
        """Sends a request whose answer is read as it comes."""
        sock, got = await self._exchange(method, target, body, None)
        if not 200 <= got.status < 300:
            raise errors.from_answer(got.status, await self._finish(sock, got, None))
        return Download(self, sock, got)

    async def upgrade(
        self, method: str, target: str, body: bytes = b""
    ) -> tuple[socket.socket, bytes]:
        """Turns a connection into a stream of frames; gives it with what came of these."""
        sock, got = await self._exchange(method, target, body, None, UPGRADE)
        if got.status != 101:
            await self._finish(sock, got, None)
            sock.close()
            raise errors.ProtocolError(f"no stream: the server answered {got.status}")
        return sock, got.rest()

    async def upload(self, target: str, pieces: Pieces) -> None:
        """Puts a body of unknown length."""
        sock, _ = await self._connection()
        whole = False
        try:
            try:
                await self.io.send(sock, request("PUT", target, b"", CHUNKED)[0])
                while piece := await pieces():
                    await self.io.send(sock, chunk(piece))
                await self.io.send(sock, LAST_CHUNK)
                whole = True
            except (BrokenPipeError, ConnectionResetError):
                # It was refused before all of it was sent; the answer says why.
                pass
            got = await self._answer(sock, None)
            got.keep = got.keep and whole
        except Closed:
            sock.close()
            raise ServerGone("the server ended before it answered") from None
        except BaseException:
            sock.close()
            raise
        await self._finish(sock, got, None)

    def close(self) -> None:
        """Closes connections that are kept. What is asked later makes new ones."""
        while self._idle:
            self._idle.pop()[0].close()

    async def _exchange(
        self,
        method: str,
        target: str,
        body: bytes,
        timeout: float | None,
        headers: bytes = b"",
    ) -> tuple[socket.socket, Answer]:
        """Sends a request and reads the head of its answer."""
        head, body = request(method, target, body, headers)
        tries = 0
        while True:
            sock, used = await self._connection()
            taken = whole = False
            try:
                try:
                    await self.io.send(sock, head)
                    taken = True
                    if body:
                        await self.io.send(sock, body)
                    whole = True
                except (BrokenPipeError, ConnectionResetError):
                    # It was refused before all of it was sent; the answer says why.
                    pass
                got = await self._answer(sock, timeout)
                got.keep = got.keep and whole
                return sock, got
            except Closed as closed:
                sock.close()
                # A connection may end, for want of use, just when it is used again, and a server
                # that is ending may still be connected to. What changes something is sent again
                # only where it is sure that it was not taken: a request that was not read whole.
                again = not taken or method == "GET" or (closed.unread and not body)
                tries += 1
                if not again or tries > _TRIES:
                    raise ServerGone("the server ended before it answered") from None
                if not used:
                    await self.io.sleep(_RETRY)
            except BaseException:
                sock.close()
                raise

    def _limit(self, timeout: float | None) -> float | None:
        if timeout == FOREVER:
            return None
        return self.timeout if timeout is None else timeout

    async def _answer(self, sock: socket.socket, timeout: float | None) -> Answer:
        try:
            return await answer(self.io, sock, self._limit(timeout))
        except TimeoutError as error:
            raise Timeout("no answer from the server in time") from error
        except (EOFError, OSError) as error:
            raise ServerGone(f"the server ended while it answered: {error}") from error

    async def _finish(self, sock: socket.socket, got: Answer, timeout: float | None) -> bytes:
        """Reads the body of an answer, and keeps the connection."""
        try:
            body = await got.body(self._limit(timeout))
        except TimeoutError as error:
            sock.close()
            raise Timeout("the server's answer did not come in time") from error
        except (EOFError, OSError) as error:
            sock.close()
            raise ServerGone(f"the server ended while it answered: {error}") from error
        except BaseException:
            sock.close()
            raise
        self.release(sock, got)
        if 200 <= got.status < 300:
            return body
        raise errors.from_answer(got.status, body)

    def release(self, sock: socket.socket, got: Answer) -> None:
        """Keeps a connection whose answer was read."""
        if got.keep and len(self._idle) < _KEPT_MAX and self._pid == os.getpid():
            self._idle.append((sock, time.monotonic()))
        else:
            sock.close()

    async def _connection(self) -> tuple[socket.socket, bool]:
        """A connection, and whether it was used before."""
        if self._pid != os.getpid():
            # A child must not speak on the connections of its parent.
            self._pid, self._starting = os.getpid(), self.io.lock()
            self.close()
        while True:
            try:
                sock, since = self._idle.pop()
            except IndexError:
                return await self._connect(), False
            if time.monotonic() - since < _IDLE_MAX and _is_open(sock):
                return sock, True
            sock.close()

    async def _connect(self) -> socket.socket:
        """A new connection, to a server that is started if none runs."""
        sock = await self._try_connect()
        if sock is not None:
            return sock
        if not self.start:
            raise ServerGone(f"connect to {self.paths.socket}: no server runs there")
        await self._starting.acquire()
        try:
            sock = await self._try_connect()
            if sock is None:
                await self.io.offload(self._start_server)
                sock = await self._try_connect()
        finally:
            self._starting.release()
        if sock is None:
            raise ServerGone(f"connect to {self.paths.socket}: the server ended at once")
        return sock

    async def _try_connect(self) -> socket.socket | None:
        self.paths.check_socket()
        try:
            return await self.io.connect(self.paths.socket)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise ServerGone(f"connect to {self.paths.socket}: {error.strerror}") from error

    def _start_server(self) -> None:
        """Has the program start the server, as it does for itself: then there is one way only in
        which several that start one at once come to the same."""
        program = find_program()
        where = ("--store", self.paths.store, "--socket", self.paths.socket)
        try:
            done = run_program([program, "ls", "--quiet", *where])
        except OSError as error:
            raise ServerGone(f"start the server: run {program}: {error.strerror}") from error
        if done.returncode != 0:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
            said = {key: text for key, _, text in (line.partition(": ") for line in lines)}
            why = said.get("error") or "; ".join(lines) or f"it ended with {done.returncode}"
            raise ServerGone(f"start the server: {why}", hint=said.get("hint"))


def asyncio_io() -> type[IO]:
    """How asyncio waits; loaded where it is used, since loading asyncio takes its time."""
    from ._asyncio import Asyncio

    return Asyncio


_defaults: dict[tuple[type[IO], Paths], Core] = {}


def default_core(io: type[IO]) -> Core:
    """What speaks to the server that the environment means.

    Raises:
        InvalidRequest: the environment means none.
    """
    key = (io, resolve())
    core = _defaults.get(key)
    if core is None:
        core = _defaults.setdefault(key, Core(io(), key[1], start=True, timeout=None))
        atexit.register(core.close)
    return core


class Download:
    """The body of an answer, as it comes."""

    __slots__ = ("_answer", "_core", "_done", "_sock")

    def __init__(self, core: Core, sock: socket.socket, got: Answer) -> None:
        self._core = core
        self._sock = sock
        self._answer = got
        self._done = False

    async def piece(self) -> bytes:
        """Some bytes, none at the end. Errors as :meth:`Core.ask`."""
        if self._done:
            return b""
        try:
            data = await self._answer.piece()
        except (EOFError, OSError) as error:
            self.close()
            raise ServerGone(f"the answer was cut off: {error}") from error
        except BaseException:
            self.close()
            raise
        if not data:
            self._done = True
            self._core.release(self._sock, self._answer)
        return data

    def close(self) -> None:
        """Leaves the rest."""
        if not self._done:
            self._done = True
            self._sock.close()


def parsed(body: bytes) -> Any:
    """An answer's JSON; ``None`` for no body.

    Raises:
        ProtocolError: it is none.
    """
    try:
        return json.loads(body) if body else None
    except ValueError as error:
        raise errors.ProtocolError(f"no JSON in the server's answer: {error}") from error


def milliseconds(seconds: float | None, what: str = "timeout") -> int | None:
    """A span as the API has it.

    Raises:
        InvalidRequest: it is negative or no number.
    """
    if seconds is None:
        return None
    if not 0 <= seconds < 2**53:
        raise InvalidRequest(f"{what} of {seconds} seconds: not negative, and a number")
    # Not 0, which is another thing than a short time.
    return max(1, round(seconds * 1000)) if seconds else 0


def given(**fields: Any) -> dict[str, Any]:
    """The fields of a request that are not ``None``."""
    return {name: value for name, value in fields.items() if value is not None}


def _is_open(sock: socket.socket) -> bool:
    """Whether the server has not closed it while it was not used."""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    # Its end; or bytes that nobody asked for.
    return False
