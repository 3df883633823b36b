"""Everything that can go wrong, below :class:`ForkyardError`.

An error of the server keeps its words: what was tried on what, why it failed, and, where there is
something to do about it, a hint.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from .results import CommandResult, SessionResult

__all__ = [
    "CommandFailed",
    "Conflict",
    "ForkyardError",
    "Gone",
    "InvalidRequest",
    "NoSpace",
    "NotFound",
    "PermissionDenied",
    "ProtocolError",
    "Refused",
    "ServerError",
    "ServerGone",
    "Timeout",
]


class ForkyardError(Exception):
    """An error of forkyard's.

    Attributes:
        message: What was tried on what, and why it failed.
        hint: What to do about it, if there is something to do.
        status: The HTTP status of the server's answer; ``None`` where it is not from the server.
        exit_code: What a command line would end with: 126 and 127 for a program that could not be
            run, else 125; ``None`` where the server said none.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        status: int | None = None,
        exit_code: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class InvalidRequest(ForkyardError):
    """What was asked for makes no sense: a bad value, a limit out of range, a body too large."""


class PermissionDenied(ForkyardError):
    """The acting user of the sandbox may not do that to a file."""


class NotFound(ForkyardError):
    """No such sandbox, command, image, snapshot or file."""


class Conflict(ForkyardError):
    """The name is taken, the sandbox is in the wrong state, or something is still in use."""


class Gone(ForkyardError):
    """The sandbox ended meanwhile."""


class Refused(ForkyardError):
    """It cannot be done with what is there: a program that cannot be started, an image that is no
    good, a sandbox that cannot be forked, a snapshot that is damaged or of another machine."""


class NoSpace(ForkyardError):
    """No space is left on the disk."""


class ServerError(ForkyardError):
    """The kernel refused something, or the server failed; the message says what."""


class ServerGone(ForkyardError):
    """The server cannot be reached or started, or ended before it answered.

    Whether a change that it was asked for was made is not known then.
    """


class ProtocolError(ForkyardError):
    """The server's answer makes no sense: it is of another version, or not forkyard's at all."""


class Timeout(ForkyardError, TimeoutError):
    """Waiting took longer than the caller wanted. What was waited for goes on."""


class CommandFailed(ForkyardError):
    """A command or line that was run with ``check=True`` did not exit with 0.

    Attributes:
        result: How it ended, and what it wrote.
    """

    def __init__(self, what: str, result: CommandResult | SessionResult) -> None:
        tail = result.stderr.strip().splitlines()[-1:]
        super().__init__(": ".join([what, *tail]), exit_code=result.exit_code)
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.message, self.result)


def _restored(message: str, result: CommandResult | SessionResult) -> CommandFailed:
    failed = CommandFailed(message, result)
    failed.message = message
    return failed


_BY_STATUS: dict[int, type[ForkyardError]] = {
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Refused,
    507: NoSpace,
}


def from_fields(status: int, fields: Any) -> ForkyardError:
    """The error that an error's body tells; of ``status`` where it has none of its own."""
    known = cast("dict[str, Any]", fields) if isinstance(fields, dict) else {}
    status = known.get("code", status)
    kind = _BY_STATUS.get(status, InvalidRequest if 400 <= status < 500 else ServerError)
    return kind(
        str(known.get("message") or f"the server answered with status {status}"),
        hint=known.get("hint"),
        status=status,
        exit_code=known.get("exit_code"),
    )


def from_answer(status: int, body: bytes) -> ForkyardError:
    """The error that an answer other than 2xx means."""
    try:
        fields = json.loads(body)
    except ValueError:
        fields = None
    return from_fields(status, fields)
