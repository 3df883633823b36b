"""Files of a sandbox."""

from __future__ import annotations

import builtins
import os
import shutil
import tarfile
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import BinaryIO, Protocol

from . import _core
from ._core import Core, Pieces
from ._http import FilePath, file_path, query
from ._reading import read, read_list
from .errors import NotFound, ProtocolError
from .models import FileInfo

__all__ = ["AsyncDownload", "AsyncFiles", "Contents", "FilePath"]


_READ = 256 * 1024
"""Bytes of an open file that are read at once."""


class Readable(Protocol):
    """A file that is open for reading bytes."""

    def read(self, size: int, /) -> bytes: ...


Contents = str | bytes | bytearray | memoryview | Readable | Iterable[bytes] | AsyncIterable[bytes]
"""What a file gets: text as UTF-8, bytes, or, without being held in memory, an open file or
anything that gives bytes bit by bit."""


class AsyncFiles:
    """The files of a sandbox: ``sandbox.files``.

    Requests are answered inside the sandbox, below its own root: no link leads out of it. Paths are
    absolute, relative to the sandbox's working directory, or begin with ``~/``. With ``user``
    (``USER[:GROUP]``) a request acts as that user; as the sandbox's own without.

    Raises, all of them:
        NotFound: no such file, or no such sandbox.
        PermissionDenied: the user may not do that.
        InvalidRequest: the path is of another kind than the method needs, or is not UTF-8.
        Conflict: it is there already.
        NoSpace: the disk is full.
        ServerGone: the server ended meanwhile.
    """

    def __init__(self, core: Core, base: str) -> None:
        self._core = core
        self._base = base

    def _target(self, what: str, path: FilePath, **options: str | int | bool | None) -> str:
        return f"{self._base}/{what}{query(path=file_path(path), **options)}"

    async def read_bytes(self, path: FilePath, *, user: str | None = None) -> bytes:
        """A file's bytes, all at once; :meth:`stream` for large ones."""
        return await self._core.ask("GET", self._target("files", path, user=user))

    async def read_text(
        self,
        path: FilePath,
        *,
        encoding: str = "utf-8",
        errors: str = "strict",
        user: str | None = None,
    ) -> str:
        """A file's text.

        Raises:
            UnicodeDecodeError: it is not in that encoding, and ``errors`` is ``"strict"``.
        """
        return (await self.read_bytes(path, user=user)).decode(encoding, errors)

    read = read_text

    async def stream(self, path: FilePath, *, user: str | None = None) -> AsyncDownload:
        """A file's bytes as they come, to be iterated over.

        As many come as the file has when it is opened. One that gets shorter meanwhile is cut off:
        ``ServerGone``.
        """
        target = self._target("files", path, user=user)
        return AsyncDownload(await self._core.download("GET", target))

    async def write(
        self,
        path: FilePath,
        contents: Contents,
        *,
        append: bool = False,
        parents: bool = True,
        mode: int | None = None,
        user: str | None = None,
    ) -> None:
        """Writes a file, in place of what it had.

        Args:
            path: The file.
            contents: Text, bytes, an open file, or an iterable of bytes.
            append: Add to what it has.
            parents: Make directories above it that are missing.
            mode: Permission bits of a new file, ``0o644`` when ``None``.
            user: Who writes it, and owns it if it is new.
        """
        target = self._target(
            "files", path, append=append, parents=parents, mode=_octal(mode), user=user
        )
        await self._put(target, contents)

    async def list(
        self, path: FilePath = ".", *, depth: int = 1, user: str | None = None
    ) -> builtins.list[FileInfo]:
        """What is in a directory, down to ``depth``; 100,000 entries at most."""
        target = self._target("list", path, depth=depth, user=user)
        return read_list(FileInfo, await self._core.ask_json("GET", target))

    async def stat(self, path: FilePath, *, user: str | None = None) -> FileInfo:
        """What is known of a file; of a link, not of what it leads to."""
        target = self._target("stat", path, user=user)
        return read(FileInfo, await self._core.ask_json("GET", target))

    async def exists(self, path: FilePath, *, user: str | None = None) -> bool:
        """Whether there is such a file, directory or link.

        Raises:
            NotFound: there is no such sandbox.
        """
        try:
            await self.stat(path, user=user)
        except NotFound as error:
            if error.message.startswith("no such sandbox"):
                raise
            return False
        return True

    async def make_dir(
        self,
        path: FilePath,
        *,
        parents: bool = True,
        mode: int | None = None,
        user: str | None = None,
    ) -> None:
        """Makes a directory.

        Args:
            path: The directory.
            parents: Make those above it too, and do not mind if it is there already.
            mode: Permission bits, ``0o755`` when ``None``.
            user: Who makes it, and owns it.
        """
        target = self._target("mkdir", path, parents=parents, mode=_octal(mode), user=user)
        await self._core.ask("POST", target)

    async def remove(
        self, path: FilePath, *, recursive: bool = False, user: str | None = None
    ) -> None:
        """Removes a file, a link, or a directory; with ``recursive`` one that is not empty."""
        target = self._target("files", path, recursive=recursive, user=user)
        await self._core.ask("DELETE", target)

    async def rename(self, source: FilePath, target: FilePath, *, user: str | None = None) -> None:
        """Gives a file or directory another name, in place of a file that has it."""
        await self._core.ask("POST", self._from_to("move", source, target, user=user))

    async def copy(
        self,
        source: FilePath,
        target: FilePath,
        *,
        recursive: bool = False,
        user: str | None = None,
    ) -> None:
        """Copies a file within the sandbox; with ``recursive`` a directory."""
        options = self._from_to("copy", source, target, recursive=recursive, user=user)
        await self._core.ask("POST", options)

    def _from_to(
        self, what: str, source: FilePath, target: FilePath, **options: str | bool | None
    ) -> str:
        # `from` is a keyword, so it cannot be an argument's name.
        names = query(**{"from": file_path(source), "to": file_path(target), **options})
        return f"{self._base}/{what}{names}"

    async def archive(self, path: FilePath, *, user: str | None = None) -> AsyncDownload:
        """A file or tree as a tar archive, to be iterated over as it comes."""
        target = self._target("archive", path, user=user)
        return AsyncDownload(await self._core.download("GET", target))

    async def extract(
        self,
        path: FilePath,
        archive: Contents,
        *,
        owners: bool = False,
        user: str | None = None,
    ) -> None:
        """Unpacks a tar archive below a directory.

        Args:
            path: The directory.
            archive: As for :meth:`write`.
            owners: Keep the owners that the archive names.
            user: Who owns what is unpacked, without ``owners``.
        """
        await self._put(self._target("archive", path, owners=owners, user=user), archive)

    async def upload(
        self, local: str | os.PathLike[str], path: FilePath, *, user: str | None = None
    ) -> None:
        """Copies a file or directory of this machine to ``path``, where a directory's contents go
        into the directory ``path``, which is made if need be.

        Raises:
            OSError: it cannot be read.
        """
        if not os.path.isdir(local):
            with open(local, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode & 0o777
                await self.write(path, file, mode=mode, user=user)
            return
        await self.make_dir(path, user=user)
        with tempfile.TemporaryFile() as spool:
            await self._core.io.offload(lambda: _pack(local, spool))
            await self.extract(path, spool, user=user)

    async def download(
        self, path: FilePath, local: str | os.PathLike[str], *, user: str | None = None
    ) -> None:
        """Copies a file or directory of the sandbox into the directory ``local`` of this machine,
        which is made if need be, under its own name.

        What comes out belongs to you. Links are copied as links, wherever they lead, and nothing
        is written through one; devices, sockets and setuid bits stay behind.

        Raises:
            ProtocolError: it has names or links that cannot be made below ``local``.
            OSError: it cannot be written, or a directory of that name is there and not empty.
        """
        with tempfile.TemporaryFile() as spool:
            async with await self.archive(path, user=user) as pieces:
                async for piece in pieces:
                    spool.write(piece)
            spool.seek(0)
            try:
                await self._core.io.offload(lambda: _unpack(spool, local))
            except (tarfile.TarError, OverflowError, ValueError) as error:
                raise ProtocolError(f"an archive that cannot be unpacked: {error}") from error

    async def _put(self, target: str, contents: Contents) -> None:
        if isinstance(contents, str):
            contents = contents.encode()
        if isinstance(contents, bytes | bytearray | memoryview):
            await self._core.ask("PUT", target, bytes(contents))
        else:
            await self._core.upload(target, _pieces(self._core, contents))


class AsyncDownload:
    """Bytes as they come. One that is not read to its end should be closed, or used with
    ``async with``."""

    def __init__(self, download: _core.Download) -> None:
        self._download = download

    async def __aenter__(self) -> AsyncDownload:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """Some bytes.

        Raises:
            ServerGone: the rest will not come.
        """
        piece = await self._download.piece()
        if not piece:
            raise StopAsyncIteration
        return piece

    def close(self) -> None:
        """Leaves the rest."""
        self._download.close()


def _pieces(core: Core, contents: Readable | Iterable[bytes] | AsyncIterable[bytes]) -> Pieces:
    """What sends contents bit by bit, however these are given."""
    if isinstance(contents, AsyncIterable):
        ahead = aiter(contents)

        async def pull() -> bytes:
            # An empty piece is not the end.
            while True:
                try:
                    if piece := await anext(ahead):
                        return piece
                except StopAsyncIteration:
                    return b""

        return pull
    if isinstance(contents, Iterable) and not hasattr(contents, "read"):
        pieces = filter(None, contents)

        async def take() -> bytes:
            return next(pieces, b"")

        return take
    file: Readable = contents  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

    async def fetch() -> bytes:
        return await core.io.offload(lambda: file.read(_READ))

    return fetch


def _octal(mode: int | None) -> str | None:
    return None if mode is None else f"{mode:04o}"


def _pack(directory: str | os.PathLike[str], spool: BinaryIO) -> None:
    with tarfile.open(fileobj=spool, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(os.listdir(directory)):
            archive.add(os.path.join(directory, name), arcname=name)
    spool.seek(0)


def _unpack(spool: BinaryIO, directory: str | os.PathLike[str]) -> None:
    """Unpacks what a guest named as it liked. All goes into a new directory, directories and files
    first and symbolic links last, so that nothing is ever written or read through a link; then it
    is moved to its place."""
    os.makedirs(directory, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=directory, prefix=".forkyard-") as fresh,
        tarfile.open(fileobj=spool) as archive,
    ):
        members = [(member, _place(fresh, member.name)) for member in archive]
        for member, place in members:
            os.makedirs(place if member.isdir() else os.path.dirname(place), exist_ok=True)
        for member, place in members:
            if member.isreg() and (contents := archive.extractfile(member)) is not None:
                with open(place, "xb") as file:
                    shutil.copyfileobj(contents, file)
                    os.fchmod(file.fileno(), member.mode & 0o777)
                os.utime(place, (member.mtime, member.mtime))
        for member, place in members:
            if member.islnk():
                os.link(_place(fresh, member.linkname), place)
        for member, place in members:
            if member.issym():
                os.symlink(member.linkname, place)
        for member, place in reversed(members):
            if member.isdir():
                os.chmod(place, member.mode & 0o777 | 0o700)
                os.utime(place, (member.mtime, member.mtime))
        for name in os.listdir(fresh):
            os.rename(os.path.join(fresh, name), os.path.join(directory, name))


def _place(directory: str, name: str) -> str:
    parts = [each for each in name.split("/") if each not in ("", ".")]
    if name.startswith("/") or ".." in parts or not parts:
        raise ProtocolError(f"{name!r} in an archive: not below its top")
    return os.path.join(directory, *parts)
