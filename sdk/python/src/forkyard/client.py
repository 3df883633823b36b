"""A server: its sandboxes, images and snapshots."""

from __future__ import annotations

import builtins
import functools
import json
import os
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar
from urllib.parse import quote

from . import errors, sandbox
from ._core import Core, asyncio_io, given, milliseconds, parsed
from ._http import part, query
from ._io import IO
from ._paths import resolve
from ._reading import read, read_list
from .errors import InvalidRequest, ProtocolError
from .models import Health, ImageDetails, ImageInfo, Progress, Pruned, SandboxInfo, Snapshot

__all__ = ["AsyncClient", "AsyncImages", "AsyncSnapshots", "OnProgress"]

P = ParamSpec("P")
T = TypeVar("T")

OnProgress = Callable[[Progress], object]
"""Called with each step."""


def _with_core(
    op: Callable[Concatenate[Core, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """The function as a method of a client."""

    @functools.wraps(op)
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return op(self._core, *args, **kwargs)  # pyright: ignore[reportPrivateUsage]

    return method


class AsyncClient:
    """A server. ``AsyncSandbox.create`` and its like use the one that the environment means; this
    is for another one, and for what is no sandbox's own.

    Used with ``async with`` its connections are closed at the end.

    Args:
        socket: Where it listens; ``FORKYARD_SOCKET``, else that of the store, when ``None``.
        store: The directory that it keeps everything in; ``FORKYARD_STORE``, else the user's own,
            when ``None``.
        start: Start it if it does not run.
        timeout: Seconds that an answer may stay away; for ever when ``None``. What is waited for
            by its nature, lines of a session and ends of commands, has no such limit.

    Raises:
        InvalidRequest: there is no home to have a store in, or the socket's path is too long.

    Attributes:
        images: Its images.
        snapshots: Its snapshots.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        store: str | os.PathLike[str] | None = None,
        start: bool = True,
        timeout: float | None = None,
        _io: type[IO] | None = None,
    ) -> None:
        io = _io or asyncio_io()
        self._core = Core(io(), resolve(socket, store), start=start, timeout=timeout)
        self.images = AsyncImages(self._core)
        self.snapshots = AsyncSnapshots(self._core)

    create = _with_core(sandbox.create)
    connect = _with_core(sandbox.connect)
    list = _with_core(sandbox.list_all)

    def __repr__(self) -> str:
        return f"<AsyncClient {self.socket}>"

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    @property
    def socket(self) -> str:
        """Path of the server's socket."""
        return self._core.paths.socket

    @property
    def store(self) -> str:
        """Directory that a server which is started here keeps everything in."""
        return self._core.paths.store

    def close(self) -> None:
        """Closes connections that are kept. What is asked later makes new ones."""
        self._core.close()

    async def health(self) -> Health:
        """What the server says of itself.

        Raises:
            ServerGone: it cannot be reached or started.
        """
        return read(Health, await self._core.ask_json("GET", "/v1/health"))

    async def usage(self) -> builtins.list[SandboxInfo]:
        """The sandboxes that run, with what they use."""
        return read_list(SandboxInfo, await self._core.ask_json("GET", "/v1/usage"))

    async def stop(self, *, sandboxes: Literal["keep", "delete"] | None = None) -> None:
        """Ends the server, and returns when it has ended.

        Args:
            sandboxes: What becomes of those that run: ``"keep"`` leaves them to the next server,
                ``"delete"`` removes them.

        Raises:
            Conflict: some run, and nothing was said of them.
        """
        options = query(keep=sandboxes == "keep", force=sandboxes == "delete")
        await self._core.ask_last("POST", f"/v1/shutdown{options}")


class AsyncSnapshots:
    """Snapshots of a server: ``client.snapshots``. Sandboxes take and use them."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def list(self) -> builtins.list[Snapshot]:
        """All of them."""
        return read_list(Snapshot, await self._core.ask_json("GET", "/v1/snapshots"))

    async def get(self, snapshot: str) -> Snapshot:
        """One, by its id or name.

        Raises:
            NotFound: there is none.
        """
        return read(Snapshot, await self._core.ask_json("GET", f"/v1/snapshots/{part(snapshot)}"))

    async def delete(self, snapshot: str) -> None:
        """Removes one, by its id or name.

        Raises:
            NotFound: there is none.
            Conflict: it is still in use.
        """
        await self._core.ask("DELETE", f"/v1/snapshots/{part(snapshot)}")


class AsyncImages:
    """Images of a server: ``client.images``."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def list(self) -> builtins.list[ImageInfo]:
        """Those that were pulled or imported."""
        return read_list(ImageInfo, await self._core.ask_json("GET", "/v1/images"))

    async def get(self, name: str) -> ImageDetails:
        """Everything about one.

        Raises:
            NotFound: there is none.
        """
        return read(ImageDetails, await self._core.ask_json("GET", _image(name)))

    async def pull(
        self,
        reference: str,
        *,
        platform: str | None = None,
        plain_http: bool = False,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> ImageInfo:
        """Gets an image from a registry.

        Args:
            reference: As ``docker pull`` takes it: ``[REGISTRY/]REPOSITORY[:TAG|@DIGEST]``.
            platform: ``OS/ARCH[/VARIANT]``; the host's when ``None``.
            plain_http: Speak plain HTTP; with registries on loopback it is spoken anyway.
            timeout: Seconds that the registry may be silent; 30 when ``None``.
            on_progress: Called with each step.

        Raises:
            Refused: the registry has no such image, refuses it, or it is no good.
        """
        fields = given(
            reference=reference,
            platform=platform,
            plain_http=plain_http,
            timeout_ms=milliseconds(timeout),
        )
        return await self._get("pull", fields, on_progress)

    async def import_(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        platform: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> ImageInfo:
        """Makes an image of a directory, an OCI layout, an archive of ``docker save``, or a tar of
        a root file system.

        Args:
            path: Where it is on this machine.
            name: Its name; from the archive, else from the path, when ``None``.
            platform: ``OS/ARCH[/VARIANT]``; the host's when ``None``.
            on_progress: Called with each step.

        Raises:
            Refused: it is none of these, or no good.
        """
        fields = given(path=os.path.abspath(path), name=name, platform=platform)
        return await self._get("import", fields, on_progress)

    async def remove(self, name: str) -> None:
        """Removes an image.

        Raises:
            NotFound: there is none.
            Conflict: a sandbox or snapshot uses it.
        """
        await self._core.ask("DELETE", _image(name))

    async def prune(self) -> Pruned:
        """Removes layers that no image uses, and downloads that were cut off."""
        return read(Pruned, await self._core.ask_json("POST", "/v1/images/prune"))

    async def _get(
        self, how: str, fields: dict[str, Any], on_progress: OnProgress | None
    ) -> ImageInfo:
        body = json.dumps(fields).encode()
        download = await self._core.download("POST", f"/v1/images/{how}", body)
        rest = b""
        try:
            while piece := await download.piece():
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    step: dict[str, Any] = parsed(line) or {}
                    match step.get("type"):
                        case "done":
                            return read(ImageInfo, step.get("image"))
                        case "error":
                            raise errors.from_fields(500, step.get("error"))
                        case "layer" | "note" if on_progress is not None:
                            on_progress(read(Progress, step))
                        case _:
                            pass
        finally:
            download.close()
        raise ProtocolError("the image's end was not told")


def _image(name: str) -> str:
    # Slashes are part of the name here.
    if not name:
        raise InvalidRequest("an image's name is empty")
    return f"/v1/images/{quote(name)}"
