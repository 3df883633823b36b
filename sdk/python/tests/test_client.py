"""What is of a server and of no sandbox: images, snapshots, health."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conftest import until
from forkyard import Client, Conflict, NotFound, Progress, Refused, Sandbox


def root_of(directory: Path) -> Path:
    """A root file system that is just enough for an image."""
    for name in ["etc", "bin", "tmp"]:
        (directory / name).mkdir(parents=True)
    (directory / "etc" / "motd").write_text("made here")
    return directory


def test_a_server_says_what_it_is(client: Client, sandbox: Sandbox) -> None:
    health = client.health()
    assert health.store == os.environ["FORKYARD_STORE"] == client.store
    assert client.socket == os.environ["FORKYARD_SOCKET"]
    assert Path(f"/proc/{health.pid}").exists()
    assert health.sandboxes >= 1
    used = {each.id: each.usage for each in client.usage()}
    assert used[sandbox.id] is not None
    assert client.connect(sandbox.id).id == sandbox.id
    assert sandbox.id in {each.id for each in client.list()}
    with client.create(name="by-client") as other:
        assert other.name == "by-client"


def test_images_come_from_directories_and_go(client: Client, tmp_path: Path) -> None:
    steps: list[Progress] = []
    made = client.images.import_(root_of(tmp_path / "root"), "mine", on_progress=steps.append)
    assert (made.name, made.layers) == ("mine", 1)
    assert {each.type for each in steps} <= {"layer", "note"}
    assert [each.name for each in client.images.list()] == ["mine"]
    details = client.images.get("mine")
    assert (details.digest, details.size) == (made.digest, made.size)
    with Sandbox.create("mine") as sandbox:
        assert sandbox.files.read("/etc/motd") == "made here"
        assert sandbox.info().image == "mine"
        with pytest.raises(Conflict, match="used by sandbox"):
            client.images.remove("mine")
    client.images.remove("mine")
    with pytest.raises(NotFound):
        client.images.get("mine")
    client.images.prune()
    assert client.images.get("host").created_at is None


def test_images_that_are_no_good_are_refused(client: Client, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(Refused):
        client.images.import_(tmp_path / "text", "bad")
    with pytest.raises(Refused) as raised:
        client.images.pull("127.0.0.1:1/none", timeout=5)
    assert raised.value.hint


def test_snapshots_are_listed_and_removed(client: Client, sandbox: Sandbox) -> None:
    sandbox.files.write("/root/note", "kept")
    taken = sandbox.snapshot("files", files_only=True, wait=False)
    assert taken.kind == "files"
    until("the disk", lambda: client.snapshots.get("files").state == "ready")
    assert taken.id in {each.id for each in client.snapshots.list()}
    found = client.snapshots.get(taken.id)
    assert (found.name, found.sandbox, found.report) == ("files", sandbox.id, None)
    assert found.ready_at is not None
    with client.create(snapshot="files") as again:
        assert again.files.read("/root/note") == "kept"
    client.snapshots.delete("files")
    with pytest.raises(NotFound, match="no such snapshot"):
        client.snapshots.get("files")
