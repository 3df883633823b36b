"""Sandboxes."""

from __future__ import annotations

import builtins
import contextlib
import functools
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar

from ._core import Core, asyncio_io, default_core, given, milliseconds
from ._reading import read, read_list
from .commands import AsyncCommands, AsyncPty, sandbox_base
from .errors import NotFound
from .files import AsyncFiles
from .models import (
    Event,
    ForkReport,
    RestoreReport,
    SandboxInfo,
    Snapshot,
    SnapshotReport,
    Usage,
    Volume,
)
from .session import AsyncSession

__all__ = ["AsyncSandbox", "Clones"]

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class Clones(list[S], Generic[S]):
    """The clones of a fork: a list of running sandboxes.

    Attributes:
        report: How the fork went.
    """

    def __init__(self, clones: Iterable[S], report: ForkReport) -> None:
        super().__init__(clones)
        self.report = report


async def create(
    core: Core,
    image: str | None = None,
    *,
    snapshot: str | Snapshot | None = None,
    name: str | None = None,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    workdir: str | None = None,
    memory: int | None = None,
    cpus: float | None = None,
    pids: int | None = None,
    timeout: float | None = None,
    network: Literal["none", "host"] = "none",
    volumes: Sequence[Volume] = (),
    metadata: Mapping[str, str] | None = None,
) -> AsyncSandbox:
    """Makes a sandbox, and starts a server if none runs.

    Args:
        image: Name of an image; ``host``, this machine's own programs, when ``None``.
        snapshot: A snapshot to go on from, in place of an image; its id or name will do.
        name: A name that no other sandbox has: ``[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}``.
        env: Variables, added to the image's.
        user: ``USER[:GROUP]`` of its commands, names or numbers; the image's, else root, when
            ``None``.
        workdir: Absolute working directory of its commands; the image's when ``None``.
        memory: Most memory with page cache, in bytes; at least 4 MiB.
        cpus: Most processor time, in processors.
        pids: Most processes and threads at once.
        timeout: Seconds, after which it is ended.
        network: ``"none"``, loopback alone, or ``"host"``, this machine's.
        volumes: Directories and files of this machine that it sees.
        metadata: Keys and values of your own.

    Raises:
        NotFound: there is no such image or snapshot.
        Conflict: the name is taken.
        InvalidRequest: a value makes no sense, or this host cannot limit that.
        Refused: the snapshot is damaged, or not for this machine.
        ServerGone: the server cannot be reached or started.
    """
    limits = given(memory=memory, cpus=cpus, pids=pids)
    fields = given(
        image=image,
        name=name,
        env=None if env is None else dict(env),
        user=user,
        workdir=workdir,
        limits=limits or None,
        timeout_ms=milliseconds(timeout),
        net=None if network == "none" else network,
        volumes=[
            {"source": each.source, "target": each.target, "read_only": each.read_only}
            for each in volumes
        ]
        or None,
        metadata=None if metadata is None else dict(metadata),
    )
    if snapshot is not None:
        fields["from"] = snapshot.id if isinstance(snapshot, Snapshot) else snapshot
    made = await core.ask_json("POST", "/v1/sandboxes", fields)
    report = made.get("report")
    return AsyncSandbox(
        core, read(SandboxInfo, made), None if report is None else read(RestoreReport, report)
    )


async def connect(core: Core, sandbox: str) -> AsyncSandbox:
    """A sandbox that is there, by its id or name.

    Raises:
        NotFound: there is none.
        ServerGone: the server cannot be reached or started.
    """
    return AsyncSandbox(core, read(SandboxInfo, await core.ask_json("GET", sandbox_base(sandbox))))


async def list_all(core: Core) -> list[SandboxInfo]:
    """All sandboxes, ended ones too; ``connect`` to one to use it.

    Raises:
        ServerGone: the server cannot be reached or started.
    """
    return read_list(SandboxInfo, await core.ask_json("GET", "/v1/sandboxes"))


def _of_default(
    op: Callable[Concatenate[Core, P], Coroutine[Any, Any, T]],
) -> staticmethod[P, Coroutine[Any, Any, T]]:
    """The function with the server that the environment means."""

    @functools.wraps(op)
    def call(*args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return op(default_core(asyncio_io()), *args, **kwargs)

    return staticmethod(call)


class AsyncSandbox:
    """A sandbox: processes, files and a network of its own.

    Used with ``async with`` it is deleted at the end::

        async with await AsyncSandbox.create() as sandbox:
            result = await sandbox.commands.run("echo hello")

    Attributes:
        id: Its id.
        name: Its name, if it has one.
        commands: Its commands.
        session: Its persistent shell.
        files: Its files.
        pty: Its commands with a terminal.
        report: How it went on from a snapshot, for one that was made so.
    """

    create = _of_default(create)
    connect = _of_default(connect)
    list = _of_default(list_all)

    def __init__(self, core: Core, info: SandboxInfo, report: RestoreReport | None = None) -> None:
        self._core = core
        self._base = sandbox_base(info.id)
        self.id = info.id
        self.name = info.name
        self.report = report
        self.commands = AsyncCommands(core, info.id, self._base)
        self.session = AsyncSession(core, self._base)
        self.files = AsyncFiles(core, self._base)
        self.pty = AsyncPty(self.commands)

    def __repr__(self) -> str:
        return f"<AsyncSandbox {self.id}{f' {self.name}' if self.name else ''}>"

    async def __aenter__(self) -> AsyncSandbox:
        return self

    async def __aexit__(self, *_: object) -> None:
        # It may have been deleted within.
        with contextlib.suppress(NotFound):
            await self.delete()

    async def info(self) -> SandboxInfo:
        """What it is at this moment, with what it uses.

        Raises:
            NotFound: it was deleted.
        """
        return read(SandboxInfo, await self._core.ask_json("GET", self._base))

    async def usage(self) -> Usage:
        """What it uses at this moment; all is ``None`` for one that does not run.

        Raises:
            NotFound: it was deleted.
        """
        return (await self.info()).usage or Usage()

    async def logs(self) -> builtins.list[Event]:
        """Its journal: what happened to it. It outlives the sandbox."""
        return read_list(Event, await self._core.ask_json("GET", f"{self._base}/events"))

    async def delete(self) -> None:
        """Ends what runs in it and removes it.

        Raises:
            NotFound: it was deleted before.
        """
        await self._core.ask("DELETE", self._base)

    async def reset(self) -> None:
        """Throws it back to its first state: all that runs in it is killed, every change to its
        files is gone, the session starts anew.

        Raises:
            Conflict: it is paused or has ended.
        """
        await self._core.ask("POST", f"{self._base}/reset")

    async def set_timeout(self, timeout: float | None) -> None:
        """Has it ended ``timeout`` seconds from now; never with ``None``.

        Raises:
            Conflict: it has ended.
        """
        fields = given(timeout_ms=milliseconds(timeout))
        await self._core.ask_json("POST", f"{self._base}/timeout", fields)

    async def fork(self, count: int = 1, *, name: str | None = None) -> Clones[AsyncSandbox]:
        """Makes running copies of it: processes, memory, open files, session and files. It runs on.

        Args:
            count: How many, 1 to 1000.
            name: Name of the clone; of several, what their names begin with: ``NAME-1`` ...

        Raises:
            Refused: something that runs in it cannot be forked, or memory is short; the message
                names it. The sandbox goes on as it was.
            Conflict: the name is taken, or it does not run.
        """
        fields = given(count=count, name=name)
        forked = await self._core.ask_json("POST", f"{self._base}/fork", fields)
        clones = [
            AsyncSandbox(self._core, each) for each in read_list(SandboxInfo, forked["clones"])
        ]
        return Clones(clones, read(ForkReport, forked["report"]))

    async def snapshot(
        self, name: str | None = None, *, files_only: bool = False, wait: bool = True
    ) -> Snapshot:
        """Keeps a picture of it on disk, from which sandboxes can be created. It runs on.

        Args:
            name: A name that no other snapshot has.
            files_only: Without processes and memory.
            wait: Return when it has reached the disk, and not as soon as the sandbox goes on.

        Raises:
            Refused: something that runs in it cannot be kept; the message names it.
            Conflict: the name is taken, or it does not run.
            NoSpace: the disk is full.
        """
        fields = given(name=name, files_only=files_only, wait=wait)
        taken = await self._core.ask_json("POST", f"{self._base}/snapshot", fields)
        return read(
            Snapshot, {**taken["snapshot"], "report": read(SnapshotReport, taken["report"])}
        )

    async def pause(self) -> SnapshotReport:
        """Puts it on disk and ends its processes, which frees its memory.

        Raises:
            Refused: something that runs in it cannot be kept; it goes on then.
            Conflict: it does not run.
        """
        paused = await self._core.ask_json("POST", f"{self._base}/pause")
        return read(SnapshotReport, paused["report"])

    async def resume(self) -> RestoreReport:
        """Has it go on after a pause.

        Raises:
            Conflict: it is not paused.
            Refused: what is on disk is damaged, or not for this machine.
        """
        resumed = await self._core.ask_json("POST", f"{self._base}/resume")
        return read(RestoreReport, resumed["report"])
