"""Where the server listens, what it keeps, and where the program is: as the command line has it."""

from __future__ import annotations

import os
import shutil
import stat
import sysconfig
from dataclasses import dataclass

from .errors import InvalidRequest, ServerGone

_LONGEST_SOCKET = 107
"""Longest path of a Unix socket in bytes, unix(7)."""


@dataclass(frozen=True)
class Paths:
    """Absolute paths of one server."""

    socket: str
    store: str
    shared_tmp: bool = False
    """Whether the socket's directory is one that anybody could have made."""

    def check_socket(self) -> None:
        """Refuses a socket that somebody else may have put where ours belongs.

        Raises:
            ServerGone: its directory is another's, or open to others.
        """
        if not self.shared_tmp:
            return
        directory = os.path.dirname(self.socket)
        try:
            found = os.lstat(directory)
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ServerGone(
                f"{directory}: not a directory of mode 0700 that is ours",
                hint="set XDG_RUNTIME_DIR, or name a socket: FORKYARD_SOCKET",
            )


def resolve(
    socket: str | os.PathLike[str] | None = None, store: str | os.PathLike[str] | None = None
) -> Paths:
    """The paths of the server that is meant; what is not given comes from the environment.

    Raises:
        InvalidRequest: there is no home to have a store in, or the socket's path is too long.
    """
    root, home = os.getuid() == 0, _directory("HOME")
    runtime = _directory("XDG_RUNTIME_DIR")
    data = _directory("XDG_DATA_HOME") or (home and os.path.join(home, ".local/share"))
    default_store = "/var/lib/forkyard" if root else data and os.path.join(data, "forkyard")
    named_store = store or os.environ.get("FORKYARD_STORE")
    named_socket = socket or os.environ.get("FORKYARD_SOCKET")
    chosen = os.path.abspath(named_store) if named_store else default_store
    if not chosen:
        raise InvalidRequest(
            "find the store: HOME is not set", hint="name it: FORKYARD_STORE, or Client(store=...)"
        )
    shared_tmp = False
    if named_socket:
        found = os.path.abspath(named_socket)
    elif chosen != default_store:
        found = os.path.join(chosen, "server.sock")
    elif root:
        found = "/run/forkyard/server.sock"
    elif runtime:
        found = os.path.join(runtime, "forkyard/server.sock")
    else:
        shared_tmp = True
        found = f"/tmp/forkyard-{os.getuid()}/server.sock"
    if len(os.fsencode(found)) > _LONGEST_SOCKET:
        raise InvalidRequest(
            f"{found}: longer than the {_LONGEST_SOCKET} bytes of a socket's path",
            hint="name a shorter one: FORKYARD_SOCKET, or Client(socket=...)",
        )
    return Paths(found, chosen, shared_tmp)


def _directory(variable: str) -> str | None:
    """A relative path is ignored, as XDG has it."""
    value = os.environ.get(variable, "")
    return value if os.path.isabs(value) else None


def find_program() -> str:
    """The ``forkyard`` program: ``FORKYARD_BIN``, else the one that was installed with this
    package, else the first on ``PATH``.

    Raises:
        ServerGone: it is nowhere.
    """
    if named := os.environ.get("FORKYARD_BIN"):
        return named
    directories = [
        sysconfig.get_path("scripts"),
        sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user")),
        # Of `pip install --target`.
        os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bin"),
    ]
    for directory in directories:
        program = os.path.join(directory, "forkyard")
        if os.access(program, os.X_OK):
            return program
    if found := shutil.which("forkyard"):
        return found
    raise ServerGone(
        "start the server: no program `forkyard` beside this package or on PATH",
        hint="set FORKYARD_BIN to it",
    )
