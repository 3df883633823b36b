"""HTTP and frames as bytes, however the connection cuts them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeVar

import pytest

from forkyard import InvalidRequest, NotFound, ProtocolError, ServerError
from forkyard import _frames as frames
from forkyard._core import milliseconds
from forkyard._http import Answer, Closed, answer, file_path, part, query, request
from forkyard._io import Blocking, Lock, finish
from forkyard.errors import from_answer

T = TypeVar("T")


class Pieces:
    """A connection on which a text comes in pieces of some length."""

    def __init__(self, text: bytes, length: int) -> None:
        self._pieces = [text[at : at + length] for at in range(0, len(text), length)]

    async def connect(self, path: str) -> socket.socket:
        raise NotImplementedError(path)

    async def send(self, sock: socket.socket, data: bytes) -> None:
        raise NotImplementedError

    async def receive(self, sock: socket.socket, timeout: float | None) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    async def ready(self, sock: socket.socket, *, read: bool) -> bool:
        raise NotImplementedError

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError

    async def offload(self, work: Callable[[], T]) -> T:
        return work()

    def lock(self) -> Lock:
        raise NotImplementedError


def read(text: bytes, length: int) -> tuple[Answer, bytes]:
    async def whole() -> tuple[Answer, bytes]:
        with socket.socket(socket.AF_UNIX) as unused:
            got = await answer(Pieces(text, length), unused, None)
            return got, await got.body()

    return finish(whole())


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 10_000])
@pytest.mark.parametrize(
    ("text", "status", "body", "keep"),
    [
        (HEAD + b"Content-Length: 5\r\n\r\nhello", 200, b"hello", True),
        (HEAD + b"content-length: 0\r\n\r\n", 200, b"", True),
        (b"HTTP/1.1 204 No Content\r\ndate: x\r\n\r\n", 204, b"", True),
        (CHUNKED + b"3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n", 200, b"hello", True),
        (CHUNKED + b"0\r\nTrailer: x\r\n\r\n", 200, b"", True),
        (HEAD + b"connection: close\r\ncontent-length: 2\r\n\r\nhi", 200, b"hi", False),
        (HEAD + b"\r\nuntil the end", 200, b"until the end", False),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno", 404, b"no", True),
    ],
)  # fmt: skip
def test_answers_are_read_in_pieces_of_any_length(
    text: bytes, status: int, body: bytes, keep: bool, length: int
) -> None:
    got, came = read(text, length)
    assert (got.status, came) == (status, body)
    assert got.keep is keep


@pytest.mark.parametrize("length", [1, 5, 1000])
def test_what_is_no_answer_is_refused(length: int) -> None:
    for text in [b"nonsense\r\n\r\n", b"HTTP/1.1 abc x\r\n\r\n", HEAD + b"x" * 70_000]:
        with pytest.raises(ProtocolError):
            read(text, length * 20)
    for text in [b"zz\r\n", b"x" * 2000]:
        with pytest.raises(ProtocolError):
            read(HEAD + b"transfer-encoding: chunked\r\n\r\n" + text, length)


@pytest.mark.parametrize("text", [HEAD, HEAD + b"content-length: 5\r\n\r\nhell"])
def test_answers_that_are_cut_off_are_told(text: bytes) -> None:
    with pytest.raises(EOFError):
        read(text, 3)
    with pytest.raises(Closed):
        read(b"", 3)


def test_requests_say_how_long_they_are() -> None:
    whole, rest = request("PUT", "/x", b"body")
    assert whole == b"PUT /x HTTP/1.1\r\nhost: forkyard\r\ncontent-length: 4\r\n\r\nbody"
    assert rest == b""
    large = bytes(100_000)
    head, rest = request("PUT", "/x", large)
    assert head.endswith(b"content-length: 100000\r\n\r\n")
    assert rest is large


def test_names_cannot_leave_their_part() -> None:
    assert part("a/b?c#d e") == "a%2Fb%3Fc%23d%20e"
    assert query(path="/ä&=", append=True, parents=False, depth=2, user=None) == (
        "?path=%2F%C3%A4%26%3D&append=true&depth=2"
    )
    assert query() == ""
    for bad in ["", "\ud800"]:
        with pytest.raises(InvalidRequest):
            part(bad)


def test_paths_are_text_or_bytes_in_utf8() -> None:
    assert file_path("/ä") == file_path("/ä".encode()) == "/ä"
    for bad in ["", b"", b"/\xff", "/\udcff"]:
        with pytest.raises(InvalidRequest):
            file_path(bad)
    with pytest.raises(InvalidRequest) as raised:
        file_path(b"/\xff")
    assert "archive" in str(raised.value)


def test_frames_come_out_as_they_went_in_wherever_they_are_cut() -> None:
    sent = [
        (frames.STARTED, b'{"id":1}'),
        (frames.STDOUT, b"x" * frames.PAYLOAD_MAX),
        (frames.STDERR, b"e"),
        (frames.STDOUT, b""),
        (frames.STDOUT, bytes(range(256))),
        (frames.EXIT, b'{"code":0}'),
    ]
    text = b"".join(frames.frame(kind, payload) for kind, payload in sent)
    for length in [1, 2, 4, 5, 6, 1000, frames.PAYLOAD_MAX, len(text)]:
        decoder, out = frames.Decoder(), [b"", b""]
        others: list[tuple[int, bytes]] = []
        for at in range(0, len(text), length):
            for kind, payload in decoder.feed(text[at : at + length]):
                if kind in (frames.STDOUT, frames.STDERR):
                    assert payload
                    out[kind - 1] += payload
                else:
                    others.append((kind, payload))
        assert out == [b"x" * frames.PAYLOAD_MAX + bytes(range(256)), b"e"]
        assert others == [sent[0], sent[-1]]


def test_output_of_an_unfinished_frame_is_passed_on() -> None:
    decoder = frames.Decoder()
    text = frames.frame(frames.STDOUT, b"0123456789")
    assert decoder.feed(text[:8]) == [(frames.STDOUT, b"012")]
    assert decoder.feed(text[8:]) == [(frames.STDOUT, b"3456789")]


@pytest.mark.parametrize("head", [b"\x63\0\0\0\0", b"\x01\0\x01\0\x01", b"\x01\xff\xff\xff\xff"])
def test_what_is_no_frame_is_refused(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        frames.Decoder().feed(head)


def test_errors_keep_the_words_of_the_server() -> None:
    body = b'{"code":404,"message":"no such x","hint":"look","exit_code":127}'
    error = from_answer(404, body)
    assert type(error) is NotFound
    assert (error.message, error.hint, error.status, error.exit_code) == (
        "no such x",
        "look",
        404,
        127,
    )
    assert str(error) == "no such x\nhint: look"
    assert type(from_answer(418, b"")) is InvalidRequest
    assert type(from_answer(503, b"<html>")) is ServerError
    assert from_answer(500, b"[]").status == 500


def test_spans_are_rounded_to_milliseconds_and_never_to_nothing() -> None:
    assert [milliseconds(each) for each in (None, 0, 1e-9, 0.5, 2)] == [None, 0, 1, 500, 2000]
    for bad in [-1, float("nan"), float("inf")]:
        with pytest.raises(InvalidRequest):
            milliseconds(bad)


def test_what_must_be_awaited_is_refused_without_await() -> None:
    class Forever:
        def __await__(self) -> object:
            yield None

    async def waits() -> None:
        await Forever()  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]

    with pytest.raises(TypeError, match="AsyncSandbox"):
        finish(waits())


def test_a_blocking_wait_ends_in_time() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(TimeoutError):
            finish(Blocking().receive(ours, 0.01))
        theirs.send(b"x")
        assert finish(Blocking().receive(ours, 1.0)) == b"x"
