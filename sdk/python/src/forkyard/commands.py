"""Commands of a sandbox: each a process tree of its own, with its own stdio and exit code."""

from __future__ import annotations

import builtins
import json
import signal as signals
from collections.abc import Mapping, Sequence
from typing import Any

from . import errors
from ._core import FOREVER, Core, given, milliseconds
from ._http import part, query
from ._reading import read, read_list
from .handles import AsyncCommandHandle, OnText, kill
from .results import CommandInfo, CommandResult, Exit

__all__ = ["AsyncCommands", "AsyncPty"]

_SHELL = "command -v bash >/dev/null 2>&1 && exec bash; exec sh"
"""Finds the best shell of an image: bash where there is one."""


class AsyncCommands:
    """The commands of a sandbox: ``sandbox.commands``.

    A command is a line for the sandbox's shell, ``"make test | tail"``, or a program with its
    arguments, ``["make", "test"]``, which no shell sees.

    Options that several methods take:

    - ``env``: variables, added to the sandbox's.
    - ``cwd``: its working directory; the sandbox's when ``None``.
    - ``user``: ``USER[:GROUP]``, names or numbers; the sandbox's when ``None``.
    - ``timeout``: seconds, after which it is ended: SIGTERM, and SIGKILL a second later.
    """

    def __init__(self, core: Core, sandbox: str, base: str) -> None:
        self._core = core
        self._sandbox = sandbox
        self._base = base

    async def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        check: bool = False,
    ) -> CommandResult:
        """Runs a command to its end.

        As in ``subprocess.run``, an exit code other than 0 is no error, unless ``check`` says so.

        Args:
            command: A line of shell, or a program and its arguments.
            stdin: All that it reads; nothing when ``None``.
            env, cwd, user, timeout: see :class:`AsyncCommands`.
            on_stdout: Called with what it writes to stdout, as it comes.
            on_stderr: The same for stderr.
            check: Raise ``CommandFailed`` when it does not exit with 0.

        Raises:
            CommandFailed: with ``check``, it did not exit with 0.
            Refused: there is no such program, or it cannot be run.
            ForkyardError: the server refused, or could not be asked.
        """
        handle = await self.start(
            command, stdin=stdin is not None, env=env, cwd=cwd, user=user, timeout=timeout
        )
        try:
            if stdin is not None:
                await handle.send_stdin(stdin)
                await handle.close_stdin()
            result = await handle.wait(on_stdout=on_stdout, on_stderr=on_stderr)
        finally:
            handle.disconnect()
        if check:
            result.check(command if isinstance(command, str) else " ".join(command))
        return result

    async def start(
        self,
        command: str | Sequence[str],
        *,
        stdin: bool = False,
        detach: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
    ) -> AsyncCommandHandle:
        """Starts a command, and follows it.

        Args:
            command: A line of shell, or a program and its arguments.
            stdin: Whether something will be sent to its stdin, which is empty otherwise.
            detach: Keep it running when nobody follows it; else it ends with its last client.
            env, cwd, user, timeout: see :class:`AsyncCommands`.

        Raises:
            Refused: there is no such program, or it cannot be run.
            ForkyardError: the server refused, or could not be asked.
        """
        shell = isinstance(command, str)
        return await self._open(
            given(
                shell=command if shell else None,
                argv=None if shell else list(command),
                stdin=stdin,
                detach=detach,
                env=None if env is None else dict(env),
                cwd=cwd,
                user=user,
                timeout_ms=milliseconds(timeout),
            )
        )

    async def _open(self, spec: dict[str, Any]) -> AsyncCommandHandle:
        core = self._core
        stream = await core.upgrade("POST", f"{self._base}/commands", json.dumps(spec).encode())
        return await AsyncCommandHandle._opened(core, self._sandbox, self._base, stream)  # pyright: ignore[reportPrivateUsage]

    async def connect(
        self, command: int, *, stdout_from: int = 0, stderr_from: int = 0
    ) -> AsyncCommandHandle:
        """Follows a command that was started before.

        Args:
            command: Its number.
            stdout_from: The byte of its stdout to begin with. Of what was written before, the
                last MiB is kept.
            stderr_from: The same for stderr.

        Raises:
            NotFound: there is none of that number, or it ended and was followed to its end.
        """
        target = f"{self._base}/commands/{command}/attach"
        offsets = query(stdout=stdout_from, stderr=stderr_from)
        stream = await self._core.upgrade("GET", target + offsets)
        return await AsyncCommandHandle._opened(  # pyright: ignore[reportPrivateUsage]
            self._core, self._sandbox, self._base, stream, (stdout_from, stderr_from)
        )

    async def list(self) -> builtins.list[CommandInfo]:
        """All commands: those that run, and those that ended and are still known."""
        return read_list(CommandInfo, await self._core.ask_json("GET", f"{self._base}/commands"))

    async def get(self, command: int) -> CommandInfo:
        """One command, by its number.

        Raises:
            NotFound: there is none.
        """
        return read(
            CommandInfo, await self._core.ask_json("GET", f"{self._base}/commands/{command}")
        )

    async def wait(self, command: int, timeout: float | None = None) -> Exit:
        """Waits until a command has ended, without following it.

        Raises:
            NotFound: there is none of that number.
            Timeout: it has not ended within ``timeout`` seconds; it goes on.
        """
        target = f"{self._base}/commands/{command}/wait"
        limit = FOREVER if timeout is None else timeout
        ended = await self._core.ask_json("POST", target, timeout=limit)
        exited = read(CommandInfo, ended).exit
        if exited is None:
            raise errors.ProtocolError(f"command {command} was waited for, and has not ended")
        return exited

    async def output(self, command: int) -> tuple[bytes, bytes]:
        """What is kept of a command's stdout and stderr: the last MiB of each.

        Raises:
            NotFound: there is none of that number.
        """
        target = f"{self._base}/commands/{command}/output?stream="
        stdout = await self._core.ask("GET", target + "stdout")
        return stdout, await self._core.ask("GET", target + "stderr")

    async def kill(self, command: int, signal: int = signals.SIGKILL) -> bool:
        """Sends a signal to a command's process group; tells whether it still ran."""
        return await kill(self._core, self._base, command, signal)

    async def forget(self, command: int) -> None:
        """Forgets a command that ended, and its output.

        Raises:
            NotFound: there is none of that number.
            Conflict: it still runs.
        """
        await self._core.ask("DELETE", f"{self._base}/commands/{command}")


class AsyncPty:
    """Commands with a terminal: ``sandbox.pty``."""

    def __init__(self, commands: AsyncCommands) -> None:
        self._commands = commands

    async def start(
        self,
        command: str | Sequence[str] | None = None,
        *,
        rows: int = 24,
        cols: int = 80,
        detach: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
    ) -> AsyncCommandHandle:
        """Starts a command on a terminal, and follows it.

        What it shows comes as stdout; what is sent to its stdin is as if typed.

        Args:
            command: A line of shell, or a program and its arguments; a shell when ``None``, bash
                where there is one.
            rows, cols: The terminal's size in characters; ``handle.resize`` changes it.
            detach, env, cwd, user, timeout: as for ``commands.start``.

        Raises:
            Refused: there is no such program, or it cannot be run.
            ForkyardError: the server refused, or could not be asked.
        """
        shell = isinstance(command, str)
        argv = ["/bin/sh", "-c", _SHELL] if command is None else list(command)
        return await self._commands._open(  # pyright: ignore[reportPrivateUsage]
            given(
                shell=command if shell else None,
                argv=None if shell else argv,
                tty={"rows": rows, "cols": cols},
                stdin=True,
                detach=detach,
                env=None if env is None else dict(env),
                cwd=cwd,
                user=user,
                timeout_ms=milliseconds(timeout),
            )
        )


def sandbox_base(sandbox: str) -> str:
    """The path of a sandbox in the API, by id or name."""
    return f"/v1/sandboxes/{part(sandbox)}"
