"""The same without ``await``.

Each class here is the face of an asynchronous one: a list of what that has. What a method takes,
does and raises is written there, once.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

from . import sandbox as _sandbox
from ._core import Core, default_core
from ._io import Blocking, Face, blocking, finish
from .client import AsyncClient, AsyncImages, AsyncSnapshots
from .commands import AsyncCommands, AsyncPty
from .errors import NotFound
from .files import AsyncDownload, AsyncFiles
from .handles import AsyncCommandHandle
from .models import RestoreReport
from .results import CommandInfo, Exit, Output
from .sandbox import AsyncSandbox, Clones
from .session import AsyncSession

__all__ = [
    "Client",
    "CommandHandle",
    "Commands",
    "Download",
    "Files",
    "Images",
    "Pty",
    "Sandbox",
    "Session",
    "Snapshots",
]

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")


class CommandHandle(Face[AsyncCommandHandle]):
    """A command that is followed.

    Its output is iterated over, or collected by :meth:`wait`; what was iterated over is not in the
    result. A killed server is waited for: the command runs on meanwhile, and not a byte is lost.

    Used with ``with`` it is left at the end, which ends a command that is not detached. One thread
    may send to it while another reads.
    """

    __slots__ = ()

    wait = blocking(AsyncCommandHandle.wait)
    send_stdin = blocking(AsyncCommandHandle.send_stdin)
    close_stdin = blocking(AsyncCommandHandle.close_stdin)
    resize = blocking(AsyncCommandHandle.resize)
    kill = blocking(AsyncCommandHandle.kill)

    def disconnect(self) -> None:
        """Leaves the command, which ends it unless it is detached or has another client."""
        self._async.disconnect()

    @property
    def id(self) -> int:
        """Its number in the sandbox."""
        return self._async.id

    @property
    def pid(self) -> int:
        """Its process id inside the sandbox."""
        return self._async.pid

    @property
    def info(self) -> CommandInfo:
        """What it was when it was started or connected to."""
        return self._async.info

    @property
    def exit(self) -> Exit | None:
        """How it ended, as far as was read; ``None`` while its output goes on."""
        return self._async.exit

    def __enter__(self) -> CommandHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def __iter__(self) -> Iterator[Output]:
        return self

    def __next__(self) -> Output:
        """The next output; errors as :meth:`wait`."""
        try:
            return finish(self._async.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None


class Commands(Face[AsyncCommands]):
    """The commands of a sandbox: ``sandbox.commands``."""

    __slots__ = ()

    run = blocking(AsyncCommands.run)
    start = blocking(AsyncCommands.start, CommandHandle)
    connect = blocking(AsyncCommands.connect, CommandHandle)
    list = blocking(AsyncCommands.list)
    get = blocking(AsyncCommands.get)
    wait = blocking(AsyncCommands.wait)
    output = blocking(AsyncCommands.output)
    kill = blocking(AsyncCommands.kill)
    forget = blocking(AsyncCommands.forget)


class Pty(Face[AsyncPty]):
    """Commands with a terminal: ``sandbox.pty``."""

    __slots__ = ()

    start = blocking(AsyncPty.start, CommandHandle)


class Session(Face[AsyncSession]):
    """A shell that stays: ``sandbox.session``."""

    __slots__ = ()

    run = blocking(AsyncSession.run)
    restart = blocking(AsyncSession.restart)


class Download(Face[AsyncDownload]):
    """Bytes as they come. One that is not read to its end should be closed, or used with
    ``with``."""

    __slots__ = ()

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Some bytes.

        Raises:
            ServerGone: the rest will not come.
        """
        try:
            return finish(self._async.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """Leaves the rest."""
        self._async.close()


class Files(Face[AsyncFiles]):
    """The files of a sandbox: ``sandbox.files``."""

    __slots__ = ()

    read = blocking(AsyncFiles.read_text)
    read_text = blocking(AsyncFiles.read_text)
    read_bytes = blocking(AsyncFiles.read_bytes)
    stream = blocking(AsyncFiles.stream, Download)
    write = blocking(AsyncFiles.write)
    list = blocking(AsyncFiles.list)
    stat = blocking(AsyncFiles.stat)
    exists = blocking(AsyncFiles.exists)
    make_dir = blocking(AsyncFiles.make_dir)
    remove = blocking(AsyncFiles.remove)
    rename = blocking(AsyncFiles.rename)
    copy = blocking(AsyncFiles.copy)
    archive = blocking(AsyncFiles.archive, Download)
    extract = blocking(AsyncFiles.extract)
    upload = blocking(AsyncFiles.upload)
    download = blocking(AsyncFiles.download)


def _of_default(
    op: Callable[Concatenate[Core, P], Coroutine[Any, Any, T]], into: Callable[[T], U]
) -> staticmethod[P, U]:
    """The function with the server that the environment means."""

    @functools.wraps(op)
    def call(*args: P.args, **kwargs: P.kwargs) -> U:
        return into(finish(op(default_core(Blocking), *args, **kwargs)))

    return staticmethod(call)


def _sandbox_of(made: AsyncSandbox) -> Sandbox:
    return Sandbox(made)


def _clones_of(made: Clones[AsyncSandbox]) -> Clones[Sandbox]:
    return Clones((Sandbox(clone) for clone in made), made.report)


def _same(it: T) -> T:
    return it


class Sandbox(Face[AsyncSandbox]):
    """A sandbox: processes, files and a network of its own.

    Used with ``with`` it is deleted at the end::

        with Sandbox.create() as sandbox:
            result = sandbox.commands.run("echo hello")

    Its methods may be called from several threads at once.
    """

    __slots__ = {
        "commands": "Its commands.",
        "files": "Its files.",
        "pty": "Its commands with a terminal.",
        "session": "Its persistent shell.",
    }

    def __init__(self, of: AsyncSandbox) -> None:
        super().__init__(of)
        self.commands = Commands(of.commands)
        self.session = Session(of.session)
        self.files = Files(of.files)
        self.pty = Pty(of.pty)

    create = _of_default(_sandbox.create, _sandbox_of)
    connect = _of_default(_sandbox.connect, _sandbox_of)
    list = _of_default(_sandbox.list_all, _same)

    info = blocking(AsyncSandbox.info)
    usage = blocking(AsyncSandbox.usage)
    logs = blocking(AsyncSandbox.logs)
    delete = blocking(AsyncSandbox.delete)
    reset = blocking(AsyncSandbox.reset)
    set_timeout = blocking(AsyncSandbox.set_timeout)
    fork = blocking(AsyncSandbox.fork, _clones_of)
    snapshot = blocking(AsyncSandbox.snapshot)
    pause = blocking(AsyncSandbox.pause)
    resume = blocking(AsyncSandbox.resume)

    @property
    def id(self) -> str:
        """Its id."""
        return self._async.id

    @property
    def name(self) -> str | None:
        """Its name, if it has one."""
        return self._async.name

    @property
    def report(self) -> RestoreReport | None:
        """How it went on from a snapshot, for one that was made so."""
        return self._async.report

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        # It may have been deleted within.
        with contextlib.suppress(NotFound):
            self.delete()


class Snapshots(Face[AsyncSnapshots]):
    """Snapshots of a server: ``client.snapshots``. Sandboxes take and use them."""

    __slots__ = ()

    list = blocking(AsyncSnapshots.list)
    get = blocking(AsyncSnapshots.get)
    delete = blocking(AsyncSnapshots.delete)


class Images(Face[AsyncImages]):
    """Images of a server: ``client.images``."""

    __slots__ = ()

    list = blocking(AsyncImages.list)
    get = blocking(AsyncImages.get)
    pull = blocking(AsyncImages.pull)
    import_ = blocking(AsyncImages.import_)
    remove = blocking(AsyncImages.remove)
    prune = blocking(AsyncImages.prune)


class Client(Face[AsyncClient]):
    """A server. ``Sandbox.create`` and its like use the one that the environment means; this is
    for another one, and for what is no sandbox's own.

    Used with ``with`` its connections are closed at the end. What it takes: see
    :class:`AsyncClient`.
    """

    __slots__ = {"images": "Its images.", "snapshots": "Its snapshots."}

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        store: str | os.PathLike[str] | None = None,
        start: bool = True,
        timeout: float | None = None,
    ) -> None:
        super().__init__(
            AsyncClient(socket, store=store, start=start, timeout=timeout, _io=Blocking)
        )
        self.images = Images(self._async.images)
        self.snapshots = Snapshots(self._async.snapshots)

    create = blocking(AsyncClient.create, _sandbox_of)
    connect = blocking(AsyncClient.connect, _sandbox_of)
    list = blocking(AsyncClient.list)
    health = blocking(AsyncClient.health)
    usage = blocking(AsyncClient.usage)
    stop = blocking(AsyncClient.stop)

    @property
    def socket(self) -> str:
        """Path of the server's socket."""
        return self._async.socket

    @property
    def store(self) -> str:
        """Directory that a server which is started here keeps everything in."""
        return self._async.store

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes connections that are kept. What is asked later makes new ones."""
        self._async.close()
