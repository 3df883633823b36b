"""Which server is meant, as the command line has it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forkyard import Client, InvalidRequest, ServerGone
from forkyard._paths import Paths, find_program, resolve


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that says nothing but where home is."""
    for name in ["SOCKET", "STORE"]:
        monkeypatch.delenv(f"FORKYARD_{name}", raising=False)
    for name in ["XDG_DATA_HOME", "XDG_RUNTIME_DIR"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/u")


def as_user(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    monkeypatch.setattr(os, "getuid", lambda: uid)


def test_root_has_the_system_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    assert resolve() == Paths("/run/forkyard/server.sock", "/var/lib/forkyard")


def test_others_have_those_of_xdg_with_fallbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 1000)
    store = "/home/u/.local/share/forkyard"
    assert resolve() == Paths("/tmp/forkyard-1000/server.sock", store, shared_tmp=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert resolve() == Paths("/run/user/1000/forkyard/server.sock", "/data/forkyard")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert resolve().store == store


def test_a_named_store_has_a_socket_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 1000)
    assert resolve(store="/s") == Paths("/s/server.sock", "/s")
    assert resolve(store="/home/u/.local/share/forkyard").socket == "/tmp/forkyard-1000/server.sock"
    monkeypatch.setenv("FORKYARD_STORE", "/e")
    assert resolve() == Paths("/e/server.sock", "/e")
    monkeypatch.setenv("FORKYARD_SOCKET", "/x")
    assert resolve() == Paths("/x", "/e")
    assert resolve(Path("/y"), "/z") == Paths("/y", "/z")


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 1000)
    with pytest.raises(InvalidRequest, match="longer than the 107 bytes"):
        resolve(store="/" + "s" * 120)
    monkeypatch.delenv("HOME")
    with pytest.raises(InvalidRequest, match="HOME is not set"):
        resolve()


def test_a_socket_in_a_directory_of_others_is_refused(tmp_path: Path) -> None:
    ours, link = tmp_path / "ours", tmp_path / "link"
    Paths(str(ours / "sock"), "/s", shared_tmp=True).check_socket()
    ours.mkdir(mode=0o700)
    Paths(str(ours / "sock"), "/s", shared_tmp=True).check_socket()
    link.symlink_to(ours)
    with pytest.raises(ServerGone, match="not a directory of mode 0700"):
        Paths(str(link / "sock"), "/s", shared_tmp=True).check_socket()
    ours.chmod(0o750)
    with pytest.raises(ServerGone, match="not a directory of mode 0700"):
        Paths(str(ours / "sock"), "/s", shared_tmp=True).check_socket()
    Paths(str(ours / "sock"), "/s").check_socket()


def test_the_program_is_named_or_on_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FORKYARD_BIN", "/named")
    assert find_program() == "/named"
    monkeypatch.delenv("FORKYARD_BIN")
    monkeypatch.setenv("PATH", str(tmp_path))

    def scripts(name: str, scheme: str = "") -> str:
        return str(tmp_path / name)

    monkeypatch.setattr("sysconfig.get_path", scripts)
    with pytest.raises(ServerGone, match="no program `forkyard`"):
        find_program()
    for directory in [tmp_path, tmp_path / "scripts"]:
        directory.mkdir(exist_ok=True)
        (directory / "forkyard").touch(mode=0o755)
        assert find_program() == str(directory / "forkyard")


def test_a_server_that_does_not_start_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text(
        "#!/bin/sh\necho 'error: no such luck' >&2; echo 'hint: pray' >&2; exit 125\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("FORKYARD_BIN", str(program))
    with Client(store=tmp_path / "s") as client, pytest.raises(ServerGone) as raised:
        client.health()
    assert (raised.value.message, raised.value.hint) == ("start the server: no such luck", "pray")
    monkeypatch.setenv("FORKYARD_BIN", str(tmp_path / "none"))
    with Client(store=tmp_path / "s") as client, pytest.raises(ServerGone, match="No such file"):
        client.health()
    with (
        Client(store=tmp_path / "s", start=False) as client,
        pytest.raises(ServerGone, match="no server runs there"),
    ):
        client.health()
