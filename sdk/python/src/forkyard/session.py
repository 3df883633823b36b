"""The persistent shell of a sandbox."""

from __future__ import annotations

import json

from ._core import FOREVER, Core, milliseconds, parsed
from ._reading import read
from .results import SessionResult

__all__ = ["AsyncSession"]


class AsyncSession:
    """A shell that stays: ``sandbox.session``.

    Its directory, variables, functions and background jobs are there for the next line. It is bash
    where the image has it, else sh. Lines that are run at once wait for each other.
    """

    def __init__(self, core: Core, base: str) -> None:
        self._core = core
        self._target = f"{base}/session"

    async def run(
        self, command: str, *, timeout: float | None = None, check: bool = False
    ) -> SessionResult:
        """Runs one or more lines of shell.

        A builtin costs no process, so this is the fastest way to run something. stdin is empty;
        of each output the first 16 MiB are kept.

        Args:
            command: The lines.
            timeout: Seconds, after which the lines are ended and the shell is not.
            check: Raise ``CommandFailed`` when ``$?`` is not 0 after them.

        Raises:
            CommandFailed: with ``check``, ``$?`` is not 0.
            ServerGone: the server ended meanwhile; the lines may have run.
            ForkyardError: the server refused, or could not be asked.
        """
        if timeout is None:
            body = f'{{"command":{json.dumps(command)}}}'
        else:
            body = json.dumps({"command": command, "timeout_ms": milliseconds(timeout)})
        answer = await self._core.ask("POST", self._target, body.encode(), timeout=FOREVER)
        result = read(SessionResult, parsed(answer))
        if check:
            result.check(command)
        return result

    async def restart(self) -> None:
        """Ends the shell and what it left in the background; the next line gets a new one."""
        await self._core.ask("DELETE", self._target)
