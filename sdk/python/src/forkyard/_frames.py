"""The frames that carry a command's stdio: ``docs/api.md``, "Streams"."""

from __future__ import annotations

from .errors import ProtocolError

STDIN, STDOUT, STDERR, RESIZE, SIGNAL, STDIN_END, EXIT, ERROR, STARTED, SANDBOX = range(10)

HEADER = 5
"""Bytes before a frame's payload."""

PAYLOAD_MAX = 64 * 1024


def frame(kind: int, payload: bytes = b"") -> bytes:
    """A frame; the payload has at most ``PAYLOAD_MAX`` bytes."""
    return b"%c%s%s" % (kind, len(payload).to_bytes(4, "big"), payload)


class Decoder:
    """Takes a stream apart. Output is passed on as it comes, other frames once they are whole: so
    what was passed on is all that came, wherever the stream breaks off."""

    __slots__ = ("_head", "_kind", "_left", "_partial")

    def __init__(self) -> None:
        self._head = b""
        self._kind = -1
        self._left = 0
        self._partial = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The kinds and payloads that these bytes complete.

        Raises:
            ProtocolError: these are no frames.
        """
        events: list[tuple[int, bytes]] = []
        if self._head:
            data, self._head = self._head + data, b""
        at, end = 0, len(data)
        while True:
            if self._kind < 0:
                if end - at < HEADER:
                    self._head = data[at:]
                    return events
                kind, length = data[at], int.from_bytes(data[at + 1 : at + HEADER], "big")
                if kind > SANDBOX or length > PAYLOAD_MAX:
                    raise ProtocolError(f"a frame of kind {kind} with {length} bytes")
                self._kind, self._left = kind, length
                at += HEADER
            elif at == end:
                return events
            piece = data[at : at + self._left]
            at += len(piece)
            self._left -= len(piece)
            if self._kind in (STDOUT, STDERR):
                if piece:
                    events.append((self._kind, piece))
            else:
                self._partial += piece
                if not self._left:
                    events.append((self._kind, self._partial))
                    self._partial = b""
            if not self._left:
                self._kind = -1
