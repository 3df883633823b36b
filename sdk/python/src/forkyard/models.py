"""What the server tells, as values.

Times are ``datetime`` in UTC, spans of reports are microseconds where a name ends in ``_us`` and
seconds elsewhere, sizes are bytes, ``cpus`` are processors. Fields that a later server may add are
ignored.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal, NamedTuple, TypeVar

from .errors import CommandFailed, ProtocolError

__all__ = [
    "CommandInfo",
    "CommandResult",
    "Event",
    "Exit",
    "FileInfo",
    "ForkReport",
    "Health",
    "ImageConfig",
    "ImageDetails",
    "ImageInfo",
    "Limits",
    "Output",
    "Phase",
    "Progress",
    "Pruned",
    "RestoreReport",
    "SandboxInfo",
    "SandboxSpec",
    "SessionResult",
    "Snapshot",
    "SnapshotReport",
    "Usage",
    "Volume",
]

M = TypeVar("M")

SandboxState = Literal[
    "creating", "running", "resetting", "paused", "resuming", "ended", "deleting"
]
"""Where a sandbox is in its life."""


def read(model: type[M], fields: Any) -> M:
    """Makes a model of an answer's JSON.

    Raises:
        ProtocolError: a field is missing, or is not what it should be.
    """
    try:
        values = {
            name: convert(fields[key]) if convert is not None else fields[key]
            for name, key, convert in _fields(model)
            if key in fields
        }
        return model(**values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"no {model.__name__} in the server's answer: {error}") from error


def read_list(model: type[M], items: Any) -> list[M]:
    """Makes models of a list in an answer's JSON; errors as :func:`read`."""
    if not isinstance(items, list):
        raise ProtocolError(f"no list of {model.__name__} in the server's answer")
    return [read(model, item) for item in items]  # pyright: ignore[reportUnknownVariableType]


_FIELDS: dict[type[Any], list[tuple[str, str, Callable[[Any], Any] | None]]] = {}


def _fields(model: type[Any]) -> list[tuple[str, str, Callable[[Any], Any] | None]]:
    """Each field's name, its name in JSON, and what makes its value of that in JSON."""
    if model not in _FIELDS:
        _FIELDS[model] = [
            (each.name, each.metadata.get("key", each.name), each.metadata.get("convert"))
            for each in dataclasses.fields(model)
        ]
    return _FIELDS[model]


def _as(convert: Callable[[Any], Any], key: str | None = None) -> Any:
    """A field that JSON has in another form, or under another name."""
    metadata: dict[str, Any] = {"convert": convert}
    if key is not None:
        metadata["key"] = key
    return field(metadata=metadata)


def _or_none(convert: Callable[[Any], Any], key: str | None = None) -> Any:
    """The same for one that may be ``null`` or absent."""

    def or_none(value: Any) -> Any:
        return None if value is None else convert(value)

    metadata: dict[str, Any] = {"convert": or_none}
    if key is not None:
        metadata["key"] = key
    return field(default=None, metadata=metadata)


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, timezone.utc)


def _seconds(milliseconds: int) -> float:
    return milliseconds / 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A part of something that was measured."""

    name: str
    """What was done."""
    us: int
    """Microseconds."""


def _phases(items: Any) -> list[Phase]:
    return read_list(Phase, items)


@dataclass(frozen=True, slots=True)
class Volume:
    """A directory or file of the host that a sandbox sees as it is."""

    source: str
    """Absolute path on the host; it must exist."""
    target: str
    """Absolute path in the sandbox; made when it is not there."""
    read_only: bool = False
    """Whether the sandbox may only read it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a sandbox may use; ``None`` where there is no limit."""

    memory: int | None = None
    """Memory and page cache, in bytes."""
    cpus: float | None = None
    """Processor time, in processors."""
    pids: int | None = None
    """Processes and threads at once; ``None`` is the server's default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxSpec:
    """What a sandbox was asked for with."""

    image: str | None = None
    snapshot: str | None = _or_none(str, "from")
    """The snapshot it went on from."""
    name: str | None = None
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    user: str | None = None
    workdir: str | None = None
    limits: Limits = _as(lambda fields: read(Limits, fields))
    timeout: float | None = _or_none(_seconds, "timeout_ms")
    """Seconds from its start to its end."""
    network: Literal["none", "host"] = _as(str, "net")
    volumes: list[Volume] = _as(lambda items: read_list(Volume, items))
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a sandbox uses at one moment; ``None`` where the host does not count it."""

    memory: int | None = None
    """Memory with page cache, in bytes."""
    memory_peak: int | None = None
    """The most memory it ever had, in bytes."""
    cpu_us: int | None = None
    """Processor time so far, in microseconds."""
    pids: int | None = None
    """Processes and threads."""
    oom_kills: int | None = None
    """Processes that were killed for want of memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxInfo:
    """A sandbox at the moment of the answer."""

    id: str
    """12 characters, ``0-9a-z``, sorted by time of creation."""
    name: str | None
    image: str
    state: SandboxState
    reason: str | None = None
    """Why it ended: ``deadline``, ``out of memory``, ``killed`` ..."""
    created_at: datetime = _as(_time)
    started_at: datetime | None = _or_none(_time)
    ended_at: datetime | None = _or_none(_time)
    deadline: datetime | None = _or_none(_time)
    """When it will be ended."""
    parent: str | None = None
    """Id of the sandbox that it was forked from."""
    pid: int | None = None
    """Process id of its init on the host, while it runs."""
    spec: SandboxSpec = _as(lambda fields: read(SandboxSpec, fields))
    usage: Usage | None = _or_none(lambda fields: read(Usage, fields))
    """What it uses now; not in listings, nor when it does not run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForkReport:
    """How a fork went."""

    stopped_us: int
    """How long the original's processes were stopped."""
    taken_us: int
    """From the request to the picture of the original."""
    running_us: int
    """From the request to the first clone running."""
    total_us: int
    """From the request to all clones running."""
    stop: list[Phase] = _as(_phases)
    """What the stop went into."""
    build: list[Phase] = _as(_phases)
    """What building the first clone went into."""
    memory: int
    """Bytes of memory that were copied."""
    processes: int
    threads: int
    files: int
    """Open file descriptions of each clone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotReport:
    """How a snapshot or a pause went."""

    stopped_us: int
    """How long the sandbox's processes were stopped."""
    taken_us: int
    """From the request until they went on."""
    durable_us: int | None = None
    """From the request until it had reached the disk; ``None`` where that was not waited for."""
    stop: list[Phase] = _as(_phases)
    write: list[Phase] = _as(_phases)
    memory: int
    """Bytes of memory that were copied."""
    processes: int
    threads: int
    files: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreReport:
    """How a sandbox went on from a snapshot or a pause."""

    read_us: int
    """From the request until all was read and checked."""
    running_us: int
    """From the request until it ran."""
    read: list[Phase] = _as(_phases)
    build: list[Phase] = _as(_phases)
    memory: int
    """Bytes of memory that were read."""
    processes: int
    threads: int
    files: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A picture of a sandbox on disk, from which new ones start."""

    id: str
    name: str | None
    sandbox: str
    """Id of the sandbox that it was taken of."""
    image: str
    kind: Literal["memory", "files"]
    """Processes with their memory and files, or files alone."""
    state: Literal["writing", "ready"]
    created_at: datetime = _as(_time)
    ready_at: datetime | None = _or_none(_time)
    """When it had reached the disk."""
    size: int | None = None
    """Bytes on disk, once it is there."""
    report: SnapshotReport | None = None
    """How it went; only for the one who took it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """An entry of a sandbox's journal."""

    seq: int
    """Counts up over all sandboxes of a server."""
    at: datetime = _as(_time)
    sandbox: str
    kind: str
    """``create``, ``start``, ``reset``, ``command``, ``exit``, ``end``, ``delete`` ..."""
    detail: str


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
    started_at: datetime = _as(_time)
    exit: Exit | None = _or_none(lambda fields: read(Exit, fields))
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


@dataclass(frozen=True, kw_only=True, slots=True)
class FileInfo:
    """A file in a sandbox. Bytes of names that are not UTF-8 are replaced."""

    path: str
    """Absolute path."""
    name: str
    """Last part of the path."""
    kind: Literal["file", "directory", "symlink", "other"]
    """``other`` is a device, socket or fifo."""
    size: int
    mode: int
    """Permission bits."""
    uid: int
    """Owner, as the sandbox sees it."""
    gid: int
    modified_at: datetime = _as(_time)
    target: str | None = None
    """Where a symbolic link leads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageInfo:
    """An image of the store."""

    name: str
    digest: str
    """Of its manifest, or of its contents where it has none."""
    size: int
    """Bytes of its layers on disk, unpacked."""
    layers: int
    """How many."""
    created_at: datetime = _as(_time)
    """When it was added."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig:
    """How an image wants things to be run in it."""

    env: list[str] = field(default_factory=list[str])
    """``NAME=VALUE``."""
    entrypoint: list[str] = field(default_factory=list[str])
    cmd: list[str] = field(default_factory=list[str])
    workdir: str | None = None
    user: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    """Its maker's own keys and values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDetails:
    """Everything about one image."""

    name: str
    digest: str
    platform: str | None = None
    """``OS/ARCH[/VARIANT]`` that it was built for; ``None`` where nothing says."""
    size: int
    created_at: datetime | None = _or_none(_time)
    """When it was added; ``None`` for ``host``."""
    layers: list[str]
    """The bottom one first: digests, or directories of the host that are used in place."""
    config: ImageConfig = _as(lambda fields: read(ImageConfig, fields))


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """A step of getting an image."""

    type: Literal["layer", "note"]
    id: str | None = None
    """The layer's digest, or what else names it."""
    step: Literal["downloading", "unpacking", "done", "present"] | None = None
    done: int = 0
    """Bytes done."""
    total: int | None = None
    """Bytes in all, if known."""
    message: str | None = None
    """Of a note: for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruned:
    """What was removed because nothing used it."""

    layers: int
    bytes: int
    """Of layers, and of downloads that were cut off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """What a live server says of itself."""

    version: str
    pid: int
    store: str
    """Its directory."""
    mode: Literal["root", "subids", "single"]
    """Which ids sandboxes have."""
    sandboxes: int
    """Those that run."""
