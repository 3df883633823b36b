"""Sandboxes for AI agents: made in milliseconds, forked while they run, thrown away.

::

    from forkyard import Sandbox

    with Sandbox.create() as sandbox:
        print(sandbox.session.run("echo hello").stdout)

:class:`Sandbox` waits, :class:`AsyncSandbox` is awaited; they are the same otherwise. Spans of time
are seconds, sizes are bytes. All errors are below :class:`ForkyardError`.
"""

from .client import AsyncClient, AsyncImages, AsyncSnapshots, OnProgress
from .commands import AsyncCommands, AsyncPty
from .errors import (
    CommandFailed,
    Conflict,
    ForkyardError,
    Gone,
    InvalidRequest,
    NoSpace,
    NotFound,
    PermissionDenied,
    ProtocolError,
    Refused,
    ServerError,
    ServerGone,
    Timeout,
)
from .files import AsyncDownload, AsyncFiles, Contents, FilePath
from .handles import AsyncCommandHandle, OnText
from .models import (
    Event,
    FileInfo,
    ForkReport,
    Health,
    ImageConfig,
    ImageDetails,
    ImageInfo,
    Limits,
    Phase,
    Progress,
    Pruned,
    RestoreReport,
    SandboxInfo,
    SandboxSpec,
    Snapshot,
    SnapshotReport,
    Usage,
    Volume,
)
from .results import CommandInfo, CommandResult, Exit, Output, SessionResult
from .sandbox import AsyncSandbox, Clones
from .session import AsyncSession
from .sync import (
    Client,
    CommandHandle,
    Commands,
    Download,
    Files,
    Images,
    Pty,
    Sandbox,
    Session,
    Snapshots,
)

__all__ = [
    "AsyncClient",
    "AsyncCommandHandle",
    "AsyncCommands",
    "AsyncDownload",
    "AsyncFiles",
    "AsyncImages",
    "AsyncPty",
    "AsyncSandbox",
    "AsyncSession",
    "AsyncSnapshots",
    "Client",
    "Clones",
    "CommandFailed",
    "CommandHandle",
    "CommandInfo",
    "CommandResult",
    "Commands",
    "Conflict",
    "Contents",
    "Download",
    "Event",
    "Exit",
    "FileInfo",
    "FilePath",
    "Files",
    "ForkReport",
    "ForkyardError",
    "Gone",
    "Health",
    "ImageConfig",
    "ImageDetails",
    "ImageInfo",
    "Images",
    "InvalidRequest",
    "Limits",
    "NoSpace",
    "NotFound",
    "OnProgress",
    "OnText",
    "Output",
    "PermissionDenied",
    "Phase",
    "Progress",
    "ProtocolError",
    "Pruned",
    "Pty",
    "Refused",
    "RestoreReport",
    "Sandbox",
    "SandboxInfo",
    "SandboxSpec",
    "ServerError",
    "ServerGone",
    "Session",
    "SessionResult",
    "Snapshot",
    "SnapshotReport",
    "Snapshots",
    "Timeout",
    "Usage",
    "Volume",
]
