"""What the server tells, as values.

Times are ``datetime`` in UTC, spans of reports are microseconds where a name ends in ``_us`` and
seconds elsewhere, sizes are bytes, ``cpus`` are processors. Fields that a later server may add are
ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from ._reading import as_, or_none, read, read_list, seconds_, time_

__all__ = [
    "Event",
    "FileInfo",
    "ForkReport",
    "Health",
    "ImageConfig",
    "ImageDetails",
    "ImageInfo",
    "Limits",
    "Phase",
    "Progress",
    "Pruned",
    "RestoreReport",
    "SandboxInfo",
    "SandboxSpec",
    "Snapshot",
    "SnapshotReport",
    "Usage",
    "Volume",
]

SandboxState = Literal[
    "creating", "running", "resetting", "paused", "resuming", "ended", "deleting"
]
"""Where a sandbox is in its life."""


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
    snapshot: str | None = or_none(str, "from")
    """The snapshot it went on from."""
    name: str | None = None
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    user: str | None = None
    workdir: str | None = None
    limits: Limits = as_(lambda fields: read(Limits, fields))
    timeout: float | None = or_none(seconds_, "timeout_ms")
    """Seconds from its start to its end."""
    network: Literal["none", "host"] = as_(str, "net")
    volumes: list[Volume] = as_(lambda items: read_list(Volume, items))
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
    created_at: datetime = as_(time_)
    started_at: datetime | None = or_none(time_)
    ended_at: datetime | None = or_none(time_)
    deadline: datetime | None = or_none(time_)
    """When it will be ended."""
    parent: str | None = None
    """Id of the sandbox that it was forked from."""
    pid: int | None = None
    """Process id of its init on the host, while it runs."""
    spec: SandboxSpec = as_(lambda fields: read(SandboxSpec, fields))
    usage: Usage | None = or_none(lambda fields: read(Usage, fields))
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
    stop: list[Phase] = as_(_phases)
    """What the stop went into."""
    build: list[Phase] = as_(_phases)
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
    stop: list[Phase] = as_(_phases)
    write: list[Phase] = as_(_phases)
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
    read: list[Phase] = as_(_phases)
    build: list[Phase] = as_(_phases)
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
    created_at: datetime = as_(time_)
    ready_at: datetime | None = or_none(time_)
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
    at: datetime = as_(time_)
    sandbox: str
    kind: str
    """``create``, ``start``, ``reset``, ``command``, ``exit``, ``end``, ``delete`` ..."""
    detail: str


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
    modified_at: datetime = as_(time_)
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
    created_at: datetime = as_(time_)
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
    created_at: datetime | None = or_none(time_)
    """When it was added; ``None`` for ``host``."""
    layers: list[str]
    """The bottom one first: digests, or directories of the host that are used in place."""
    config: ImageConfig = as_(lambda fields: read(ImageConfig, fields))


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
