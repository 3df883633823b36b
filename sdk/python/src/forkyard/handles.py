"""A command that is followed, from its start or from later on, past the end of its server."""

from __future__ import annotations

import codecs
import contextlib
import inspect
import json
import signal as signals
import socket
import time
from collections import deque
from collections.abc import Callable

from . import _frames as frames
from . import errors
from ._core import Core, parsed
from ._http import query
from ._reading import read
from .errors import Conflict, ForkyardError, NotFound, ServerGone, Timeout
from .results import CommandInfo, CommandResult, Exit, Output

__all__ = ["AsyncCommandHandle", "OnText"]

OnText = Callable[[str], object]
"""Called with text as it comes; characters are never cut. May return something to be awaited."""

_RETURN = 10.0
"""Seconds that a killed server may take to be there again."""

_RETRY = 0.05


class AsyncCommandHandle:
    """A command that is followed.

    Its output is iterated over, or collected by :meth:`wait`; what was iterated over is not in the
    result. A killed server is waited for: the command runs on meanwhile, and not a byte is lost.

    Used with ``async with`` it is left at the end, which ends a command that is not detached.
    """

    def __init__(
        self, core: Core, sandbox: str, base: str, stream: tuple[socket.socket, bytes]
    ) -> None:
        self._core = core
        self._sandbox = sandbox
        self._base = base
        self._sock, self._came = stream
        self._decoder = frames.Decoder()
        self._events: deque[Output] = deque()
        self._offsets = [0, 0]
        self._collected: tuple[list[bytes], list[bytes]] = ([], [])
        self._texts = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(2)]
        self._info: CommandInfo | None = None
        self._exit: Exit | None = None
        self._failure: ForkyardError | None = None
        self._left = False
        self._stdin_ended = False
        self._waiting = 0
        self._reading, self._writing = core.io.lock(), core.io.lock()

    @classmethod
    async def _opened(
        cls,
        core: Core,
        sandbox: str,
        base: str,
        stream: tuple[socket.socket, bytes],
        offsets: tuple[int, int] = (0, 0),
    ) -> AsyncCommandHandle:
        """One whose server has said what it started."""
        handle = cls(core, sandbox, base, stream)
        handle._offsets[:] = offsets
        try:
            while handle._info is None and not handle._is_over():
                await handle._fill(None)
            if handle._info is None:
                raise handle._failure or ServerGone("the server ended before the command started")
        except BaseException:
            handle.disconnect()
            raise
        return handle

    @property
    def id(self) -> int:
        """Its number in the sandbox."""
        return self.info.id

    @property
    def pid(self) -> int:
        """Its process id inside the sandbox."""
        return self.info.pid

    @property
    def info(self) -> CommandInfo:
        """What it was when it was started or connected to."""
        if self._info is None:
            raise errors.ProtocolError("the command was not started")
        return self._info

    @property
    def exit(self) -> Exit | None:
        """How it ended, as far as was read; ``None`` while its output goes on."""
        return self._exit

    def __repr__(self) -> str:
        return f"<AsyncCommandHandle {self.id} in {self._sandbox}>"

    async def __aenter__(self) -> AsyncCommandHandle:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.disconnect()

    def __aiter__(self) -> AsyncCommandHandle:
        return self

    async def __anext__(self) -> Output:
        """The next output; errors as :meth:`wait`."""
        output = await self._next(None)
        if output is None:
            raise StopAsyncIteration
        return output

    async def wait(
        self,
        timeout: float | None = None,
        *,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        check: bool = False,
    ) -> CommandResult:
        """Follows the command to its end.

        Args:
            timeout: Seconds; the command goes on, and so can a later ``wait``.
            on_stdout: Called with what it writes to stdout, as it comes.
            on_stderr: The same for stderr.
            check: Raise ``CommandFailed`` when it does not exit with 0.

        Raises:
            Timeout: it has not ended in time.
            CommandFailed: with ``check``, it did not exit with 0.
            ServerGone: the server was lost, and no other could be asked.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        callbacks = (on_stdout, on_stderr)
        while (output := await self._next(deadline)) is not None:
            which = 0 if output.stream == "stdout" else 1
            self._collected[which].append(output.data)
            await self._tell(callbacks[which], which, output.data)
        for which, callback in enumerate(callbacks):
            await self._tell(callback, which, b"", last=True)
        exited = self._exit
        if exited is None:
            raise ForkyardError("the command was left before it ended")
        stdout, stderr = (b"".join(pieces) for pieces in self._collected)
        result = CommandResult(
            exit_code=exited.code,
            stdout_bytes=stdout,
            stderr_bytes=stderr,
            signal=exited.signal,
            timed_out=exited.timed_out,
            oom=exited.oom,
        )
        if check:
            result.check(" ".join(self.info.argv))
        return result

    async def _tell(
        self, callback: OnText | None, which: int, data: bytes, last: bool = False
    ) -> None:
        if callback is not None and (text := self._texts[which].decode(data, last)):
            told = callback(text)
            if inspect.isawaitable(told):
                await told

    async def send_stdin(self, data: str | bytes) -> None:
        """Sends bytes, or text as UTF-8, to its stdin; waits until the server has them.

        Of a command that does not read them they are dropped when it ends.

        Raises:
            ServerGone: the server was lost, and no other could be asked.
        """
        rest = data.encode() if isinstance(data, str) else bytes(data)
        for at in range(0, len(rest), frames.PAYLOAD_MAX):
            await self._send(frames.STDIN, rest[at : at + frames.PAYLOAD_MAX])

    async def close_stdin(self) -> None:
        """Ends its stdin. Errors as :meth:`send_stdin`."""
        await self._send(frames.STDIN_END, b"")

    async def resize(self, rows: int, cols: int) -> None:
        """Gives its terminal another size, in characters. Errors as :meth:`send_stdin`."""
        await self._send(frames.RESIZE, json.dumps({"rows": rows, "cols": cols}).encode())

    async def kill(self, signal: int = signals.SIGKILL) -> bool:
        """Sends a signal to its process group; tells whether it still ran."""
        return await kill(self._core, self._base, self.id, signal)

    def disconnect(self) -> None:
        """Leaves the command, which ends it unless it is detached or has another client."""
        if not self._left:
            self._left = True
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        # Whoever waits for it elsewhere is woken by its end, and would not be if it were closed.
        if self._waiting == 0:
            self._sock.close()

    def _is_over(self) -> bool:
        return self._exit is not None or self._failure is not None or self._left

    async def _next(self, deadline: float | None) -> Output | None:
        """The next output, or none at the end."""
        while not self._events:
            if self._failure is not None:
                raise self._failure
            if self._is_over():
                return None
            await self._reading.acquire()
            try:
                if not self._events and not self._is_over():
                    await self._fill(deadline)
            finally:
                self._reading.release()
        return self._events.popleft()

    async def _fill(self, deadline: float | None) -> None:
        """Takes what came next; for whoever has the lock to read."""
        data, self._came = self._came, b""
        if not data:
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._waiting += 1
            try:
                data = await self._core.io.receive(self._sock, timeout)
            except TimeoutError as error:
                raise Timeout("the command has not ended in time; it goes on") from error
            except OSError:
                data = b""
            finally:
                self._waiting -= 1
        if self._left:
            self.disconnect()
            return
        if not data:
            await self._find_again()
            return
        for kind, payload in self._decoder.feed(data):
            self._take(kind, payload)

    def _take(self, kind: int, payload: bytes) -> None:
        match kind:
            case frames.STDOUT:
                self._offsets[0] += len(payload)
                self._events.append(Output("stdout", payload))
            case frames.STDERR:
                self._offsets[1] += len(payload)
                self._events.append(Output("stderr", payload))
            case frames.STARTED:
                self._info = self._info or read(CommandInfo, parsed(payload))
            case frames.EXIT:
                self._exit = read(Exit, parsed(payload))
                self.disconnect()
            case frames.ERROR:
                self._failure = errors.from_fields(500, parsed(payload))
                self.disconnect()
            case _:
                raise errors.ProtocolError(f"a frame of kind {kind} from the server")

    async def _find_again(self) -> None:
        """Goes on at the next server, at the byte where the last one's output broke off."""
        self._sock.close()
        if self._info is None:
            self._failure = ServerGone("the server ended before it said what it started")
            return
        attach = f"{self._base}/commands/{self.id}/attach"
        offsets = query(stdout=self._offsets[0], stderr=self._offsets[1])
        deadline = time.monotonic() + _RETURN
        while True:
            try:
                sock, self._came = await self._core.upgrade("GET", attach + offsets)
                if self._stdin_ended:
                    # The lost server may not have passed it on, and being told twice does no harm.
                    await self._core.io.send(sock, frames.frame(frames.STDIN_END))
                self._decoder, self._sock = frames.Decoder(), sock
                return
            except (ServerGone, OSError) as error:
                if time.monotonic() > deadline:
                    self._failure = ServerGone(f"the command's server was lost: {error}")
                    return
            except ForkyardError as error:
                self._failure = error
                return
            await self._core.io.sleep(_RETRY)

    async def _send(self, kind: int, payload: bytes) -> None:
        """Sends a frame. While the server does not take it, output is read, which may be what the
        command waits with."""
        await self._writing.acquire()
        try:
            if kind == frames.STDIN_END:
                self._stdin_ended = True
            sock, whole = self._sock, frames.frame(kind, payload)
            rest = memoryview(whole)
            while rest and not self._is_over():
                try:
                    rest = rest[sock.send(rest, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    await self._make_room()
                except OSError:
                    await self._reconnected(sock)
                    # What the lost connection took counts as sent, but for a frame that was not
                    # whole: of stdin the rest follows in a frame of its own, others go again.
                    begun = len(whole) - len(rest) - frames.HEADER
                    if kind == frames.STDIN and begun > 0:
                        payload = payload[begun:]
                    sock, whole = self._sock, frames.frame(kind, payload)
                    rest = memoryview(whole)
            if self._failure is not None:
                raise self._failure
        finally:
            self._writing.release()

    async def _make_room(self) -> None:
        reads = await self._reading.try_acquire()
        try:
            if await self._is_readable(reads) and not self._is_over():
                await self._fill(None)
        finally:
            if reads:
                self._reading.release()

    async def _is_readable(self, reads: bool) -> bool:
        """Waits until something can be sent or, if ``reads``, read; tells whether the latter."""
        self._waiting += 1
        try:
            return await self._core.io.ready(self._sock, read=reads)
        except OSError:
            return reads
        finally:
            self._waiting -= 1

    async def _reconnected(self, sock: socket.socket) -> None:
        """Waits until whoever reads has found the command again, or does so."""
        while self._sock is sock and not self._is_over():
            await self._reading.acquire()
            try:
                if self._sock is sock and not self._is_over():
                    await self._fill(None)
            finally:
                self._reading.release()


async def kill(core: Core, base: str, command: int, signal: int) -> bool:
    """Sends a signal to a command's process group; tells whether it still ran."""
    try:
        await core.ask_json("POST", f"{base}/commands/{command}/signal", {"signal": int(signal)})
    except (NotFound, Conflict) as error:
        # Unless it is the sandbox that is not there.
        if error.status == 404 and "command" not in error.message:
            raise
        return False
    return True
