"""HTTP/1.1 (RFC 9112) as far as a client of one server needs it: requests and answers as bytes."""

from __future__ import annotations

import os
import re
import socket
from urllib.parse import quote

from ._io import IO
from .errors import InvalidRequest, ProtocolError

UPGRADE = b"connection: upgrade\r\nupgrade: forkyard-stream\r\n"
"""Headers of a request that turns its connection into a stream of frames."""

CHUNKED = b"transfer-encoding: chunked\r\n"
"""Header of a request whose body's length is not known when it is begun."""

LAST_CHUNK = b"0\r\n\r\n"

_COPIED_MAX = 64 * 1024
_HEAD_MAX = 64 * 1024
_LINE_MAX = 1024
"""Of a chunk's head, in bytes."""

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,19})[ \t]*\r\n", re.IGNORECASE)
_IS_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*\r\n", re.IGNORECASE)

FilePath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""A path in a sandbox: absolute, relative to its working directory, or below ``~/``."""


def request(method: str, target: str, body: bytes, headers: bytes = b"") -> tuple[bytes, bytes]:
    """What is sent at once, and what of a large body goes behind it without a copy."""
    if headers is not CHUNKED:
        headers += b"content-length: %d\r\n" % len(body)
    head = f"{method} {target} HTTP/1.1\r\nhost: forkyard\r\n".encode() + headers + b"\r\n"
    return (head, body) if len(body) > _COPIED_MAX else (head + body, b"")


def chunk(data: bytes) -> bytes:
    """A part of a body of unknown length."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def part(text: str) -> str:
    """A part of a path; slashes in it are encoded.

    Raises:
        InvalidRequest: it is empty, or no text that UTF-8 can have.
    """
    if not text:
        raise InvalidRequest("an id or name is empty")
    return _encoded(text)


def query(**fields: str | int | bool | None) -> str:
    """A query string; what is ``None`` or ``False`` is left out."""
    parts = [
        f"{name}={'true' if value is True else _encoded(str(value))}"
        for name, value in fields.items()
        if value is not None and value is not False
    ]
    return "?" + "&".join(parts) if parts else ""


def _encoded(text: str) -> str:
    try:
        return quote(text, safe="")
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{text!r}: not UTF-8") from error


def file_path(path: FilePath) -> str:
    """A path as the API takes it.

    Raises:
        InvalidRequest: it is empty or not UTF-8; archives carry names of any bytes.
    """
    name = os.fspath(path)
    if isinstance(name, bytes):
        name = name.decode("utf-8", "surrogateescape")
    if not name:
        raise InvalidRequest("a path is empty")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{name!r}: a path that is not UTF-8",
            hint="`files.archive` of its directory and `files.extract` carry names of any bytes",
        ) from error
    return name


class Closed(Exception):
    """The connection ended before an answer began.

    Attributes:
        unread: Whether the server had not read all that was sent: the kernel resets a Unix socket
            that is closed with bytes in it, or before it was accepted (``unix_release_sock``).
    """

    def __init__(self, *, unread: bool) -> None:
        super().__init__()
        self.unread = unread


class Answer:
    """An answer whose head has come. Its body is read once, by either method."""

    __slots__ = ("_buffer", "_chunked", "_io", "_left", "_sock", "keep", "status")

    def __init__(self, io: IO, sock: socket.socket, head: bytes, rest: bytes) -> None:
        self._io = io
        self._sock = sock
        self._buffer = rest
        try:
            self.status = int(head[9:12])
        except ValueError:
            raise ProtocolError(f"no HTTP answer: {head[:80]!r}") from None
        self._chunked = False
        # What is left of the body or the chunk; less than nothing where the connection's end tells.
        self._left = 0
        if length := _LENGTH.search(head):
            self._left = int(length[1])
        elif self.status >= 200 and self.status != 204:
            self._chunked = _IS_CHUNKED.search(head) is not None
            self._left = 0 if self._chunked else -1
        self.keep = self._left >= 0 and _CLOSES.search(head) is None
        """Whether the connection can be used again once the body was read."""

    def rest(self) -> bytes:
        """What came behind the head of an answer that turns into a stream."""
        return self._buffer

    async def body(self, timeout: float | None = None) -> bytes:
        """All of it. Errors as :meth:`piece`; ``timeout`` is how long nothing may come, in
        seconds."""
        if not self._chunked and 0 <= self._left == len(self._buffer):
            self._left = 0
            return self._buffer
        pieces: list[bytes] = []
        while piece := await self.piece(timeout):
            pieces.append(piece)
        return b"".join(pieces)

    async def piece(self, timeout: float | None = None) -> bytes:
        """Some of it as it comes, nothing at its end.

        Raises:
            EOFError: it was cut off.
            ProtocolError: it is no HTTP.
            OSError: the connection broke, or took too long.
        """
        if self._chunked and self._left == 0:
            await self._next_chunk(timeout)
        if self._left == 0:
            return b""
        data, self._buffer = self._buffer, b""
        if not data:
            data = await self._io.receive(self._sock, timeout)
        if not data:
            if self._left < 0:
                self._left = 0
                return b""
            raise EOFError("the answer was cut off")
        if self._left < 0:
            return data
        data, self._buffer = data[: self._left], data[self._left :]
        self._left -= len(data)
        if self._chunked and self._left == 0:
            await self._line(timeout)
        return data

    async def _next_chunk(self, timeout: float | None) -> None:
        line = await self._line(timeout)
        try:
            self._left = int(line.split(b";")[0], 16)
        except ValueError:
            raise ProtocolError(f"no length of a chunk: {line[:80]!r}") from None
        if self._left == 0:
            while await self._line(timeout):
                pass
            self._chunked = False

    async def _line(self, timeout: float | None) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > _LINE_MAX:
                raise ProtocolError("a line within an answer is too long")
            data = await self._io.receive(self._sock, timeout)
            if not data:
                raise EOFError("the answer was cut off")
            self._buffer += data
        line, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
        return line


async def answer(io: IO, sock: socket.socket, timeout: float | None) -> Answer:
    """Reads the head of an answer.

    Raises:
        Closed: the connection ended before.
        EOFError, OSError, ProtocolError: as :meth:`Answer.piece`.
    """
    data = b""
    while True:
        reset = False
        try:
            more = await io.receive(sock, timeout)
        except ConnectionResetError:
            more, reset = b"", True
        if not more:
            if data:
                raise EOFError("the answer was cut off")
            raise Closed(unread=reset)
        data += more
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            return Answer(io, sock, data[: end + 2], data[end + 4 :])
        if len(data) > _HEAD_MAX:
            raise ProtocolError("the head of an answer is too long")
