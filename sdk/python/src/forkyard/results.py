"""Commands and lines as values: what they are, what they wrote, how they ended."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from ._reading import as_, or_none, read, time_
from .errors import CommandFailed

__all__ = [
    "CommandInfo",
    "CommandResult",
    "Exit",
    "Output",
    "SessionResult",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exit:
    """How a command ended."""

    code: int
    """Its own exit code, 128 + the signal that ended it, or 124 when its time was up."""
    signal: int | None = None
    timed_out: bool = False
    """It was ended because its time was up."""
    oom: bool = False
    """A process of the sandbox was killed for want of memory meanwhile, and it died."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandInfo:
    """A command of a sandbox."""

    id: int
    """Its number in the sandbox, from 1 up; never used twice."""
    pid: int
    """Process id inside the sandbox."""
    argv: list[str]
    tty: bool
    detach: bool
    """Whether it outlives its client."""
    started_at: datetime = as_(time_)
    exit: Exit | None = or_none(lambda fields: read(Exit, fields))
    """How it ended, once it has."""


class Output(NamedTuple):
    """Some bytes that a command wrote, as they came."""

    stream: Literal["stdout", "stderr"]
    """Which of the two; what is written to a terminal is ``stdout``."""
    data: bytes

    @property
    def text(self) -> str:
        """The bytes as UTF-8; what is not UTF-8, half of a character too, is replaced."""
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """How a command ended, and what it wrote."""

    exit_code: int
    """Its own, 128 + the signal that ended it, or 124 when its time was up."""
    stdout_bytes: bytes = field(repr=False)
    stderr_bytes: bytes = field(repr=False)
    signal: int | None = None
    """The signal that ended it."""
    timed_out: bool = False
    """It was ended because its time was up."""
    oom: bool = False
    """A process of the sandbox was killed for want of memory meanwhile, and it died."""

    @property
    def stdout(self) -> str:
        """What it wrote to stdout as UTF-8; bytes that are not are replaced."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """What it wrote to stderr; likewise."""
        return self.stderr_bytes.decode("utf-8", "replace")

    def check(self, what: str = "the command") -> None:
        """Raises:
        CommandFailed: it did not exit with 0.
        """
        if self.exit_code != 0:
            raise CommandFailed(f"{what} {_ended(self)}", self)


@dataclass(frozen=True, kw_only=True)
class SessionResult:
    """What came of lines that were run in a session."""

    exit_code: int
    """``$?`` after them."""
    stdout: str
    """What they wrote to stdout as UTF-8; bytes that are not are replaced."""
    stderr: str
    stdout_base64: str | None = field(default=None, repr=False)
    stderr_base64: str | None = field(default=None, repr=False)
    truncated: bool = False
    """More than 16 MiB were written; the rest was dropped."""
    timed_out: bool = False
    """They were interrupted because their time was up."""
    oom: bool = False
    """A process of the sandbox was killed for want of memory meanwhile."""
    shell_ended: bool = False
    """The shell itself ended; the next line gets a new one."""

    @property
    def stdout_bytes(self) -> bytes:
        """What they wrote to stdout, byte by byte."""
        return _bytes_of(self.stdout, self.stdout_base64)

    @property
    def stderr_bytes(self) -> bytes:
        """What they wrote to stderr, byte by byte."""
        return _bytes_of(self.stderr, self.stderr_base64)

    def check(self, what: str = "the line") -> None:
        """Raises:
        CommandFailed: it did not come to 0.
        """
        if self.exit_code != 0:
            raise CommandFailed(f"{what} {_ended(self)}", self)


def _bytes_of(text: str, encoded: str | None) -> bytes:
    return text.encode() if encoded is None else base64.b64decode(encoded)


def _ended(result: CommandResult | SessionResult) -> str:
    why = "was ended: its time was up" if result.timed_out else f"exited with {result.exit_code}"
    return f"{why} (out of memory)" if result.oom else why
