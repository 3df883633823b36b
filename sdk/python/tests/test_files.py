"""Files: written, read, listed, moved, packed."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from forkyard import (
    Conflict,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ProtocolError,
    Sandbox,
)
from forkyard.files import _unpack  # pyright: ignore[reportPrivateUsage]

MIB = 1 << 20


def test_what_is_written_is_read(sandbox: Sandbox) -> None:
    files = sandbox.files
    files.write("/work/deep/note", "hällo\n")
    assert files.read("/work/deep/note") == files.read_text("/work/deep/note") == "hällo\n"
    assert sandbox.session.run("cat /work/deep/note").stdout == "hällo\n"
    data = bytes(range(256))
    for contents in [data, bytearray(data), memoryview(data), io.BytesIO(data), [data[:9], b"", data[9:]]]:  # fmt: skip  # noqa: E501
        files.write("/work/data", contents)
        assert files.read_bytes("/work/data") == data
    files.write("/work/data", b"+", append=True)
    assert files.read_bytes("/work/data") == data + b"+"
    files.write("/work/data", "")
    assert files.read_bytes("/work/data") == b""
    files.write("/work/data", data)
    with pytest.raises(UnicodeDecodeError):
        files.read("/work/data")
    assert files.read_text("/work/data", encoding="latin-1") == data.decode("latin-1")


def test_paths_are_absolute_relative_or_below_home(sandbox: Sandbox) -> None:
    sandbox.files.write("relative", "1")
    sandbox.files.write("~/tilde", "2")
    assert sandbox.files.read(PurePosixPath("/root/relative")) == "1"
    assert sandbox.files.read(b"/root/tilde") == "2"


def test_names_of_any_characters_arrive(sandbox: Sandbox) -> None:
    for name in ["a b", "ä&=?#%41", "\U0001f980", "new\nline", "-rf", "+plus", "q'\"\\"]:
        path = f"/work/{name}"
        sandbox.files.write(path, name)
        assert sandbox.files.read(path) == name
        assert sandbox.files.stat(path).name == name
    with pytest.raises(InvalidRequest, match="not UTF-8"):
        sandbox.files.read(b"/work/\xff")


def test_names_of_any_bytes_travel_in_archives(sandbox: Sandbox) -> None:
    sandbox.session.run(r"mkdir /raw; printf x > /raw/$(printf 'n\377')", check=True)
    packed = b"".join(sandbox.files.archive("/raw"))
    sandbox.files.make_dir("/copy")
    sandbox.files.extract("/copy", packed)
    found = sandbox.session.run("cat /copy/raw/n*; ls -b /copy/raw").stdout
    assert found == "xn\\377\n"


def test_modes_and_parents_are_as_asked(sandbox: Sandbox) -> None:
    files = sandbox.files
    files.write("/m/script", "#!/bin/sh\necho ran\n", mode=0o755)
    assert files.stat("/m/script").mode == 0o755
    assert sandbox.commands.run(["/m/script"]).stdout == "ran\n"
    with pytest.raises(NotFound):
        files.write("/missing/x", "x", parents=False)
    files.make_dir("/m/a/b", mode=0o700)
    assert files.stat("/m/a/b").mode == 0o700
    files.make_dir("/m/a/b")
    with pytest.raises(Conflict):
        files.make_dir("/m/a/b", parents=False)
    with pytest.raises(InvalidRequest):
        files.write("/m/x", "x", mode=0o77777)


def test_directories_are_listed(sandbox: Sandbox) -> None:
    files = sandbox.files
    files.write("/l/a", "12345", mode=0o640)
    files.write("/l/sub/b", "")
    sandbox.session.run("ln -s a /l/link; mkfifo /l/fifo")
    listed = {each.name: each for each in files.list("/l")}
    kinds = {name: each.kind for name, each in listed.items()}
    assert kinds == {"a": "file", "sub": "directory", "link": "symlink", "fifo": "other"}
    assert (listed["a"].path, listed["a"].size, listed["a"].mode) == ("/l/a", 5, 0o640)
    assert listed["link"].target == "a"
    assert {each.path for each in files.list("/l", depth=2)} >= {"/l/sub", "/l/sub/b"}
    assert files.stat("/l/link").kind == "symlink"
    files.write("here", "")
    assert "here" in {each.name for each in files.list()}
    with pytest.raises(InvalidRequest):
        files.list("/l", depth=0)


def test_files_are_moved_copied_and_removed(sandbox: Sandbox) -> None:
    files = sandbox.files
    files.write("/w/a", "a")
    files.rename("/w/a", "/w/b")
    assert [files.exists("/w/a"), files.exists("/w/b")] == [False, True]
    files.copy("/w/b", "/w/c")
    files.copy("/w", "/v", recursive=True)
    assert files.read("/v/c") == "a"
    files.remove("/w/b")
    with pytest.raises(NotFound):
        files.remove("/w/b")
    with pytest.raises(InvalidRequest):
        files.remove("/w")
    files.remove("/w", recursive=True)
    assert not files.exists("/w")


@pytest.mark.usefixtures("ids")
def test_a_request_acts_as_a_user(sandbox: Sandbox) -> None:
    sandbox.files.write("/root/secret", "x", mode=0o600)
    with pytest.raises(PermissionDenied):
        sandbox.files.read("/root/secret", user="nobody")
    sandbox.files.write("/tmp/mine", "x", user="nobody")
    assert sandbox.session.run("stat -c %U /tmp/mine").stdout == "nobody\n"


def test_what_is_not_there_or_of_another_kind_is_told(sandbox: Sandbox) -> None:
    files = sandbox.files
    for ask in [files.read, files.stat, files.list, files.remove, files.stream, files.archive]:
        with pytest.raises(NotFound, match="no such file"):
            ask("/nowhere")
    with pytest.raises(InvalidRequest):
        files.read("/etc")
    # The answer comes before all of the body was sent.
    with pytest.raises(NotFound):
        files.write("/nowhere/x", (bytes(MIB) for _ in range(64)), parents=False)
    with pytest.raises(NotFound):
        files.write("/nowhere/x", bytes(64 * MIB), parents=False)
    sandbox.delete()
    for path in ["/etc", "/nowhere"]:
        with pytest.raises(NotFound, match="no such sandbox"):
            files.exists(path)


def test_large_files_stream_both_ways(sandbox: Sandbox) -> None:
    total, digest = 0, hashlib.sha256()

    def pieces() -> Iterator[bytes]:
        for number in range(100):
            piece = number.to_bytes(2, "big") * 300_000
            digest.update(piece)
            yield piece

    sandbox.files.write("/tmp/large", pieces())
    assert sandbox.session.run("sha256sum < /tmp/large").stdout.split()[0] == digest.hexdigest()
    again = hashlib.sha256()
    with sandbox.files.stream("/tmp/large") as download:
        for piece in download:
            total += len(piece)
            again.update(piece)
    assert (total, again.digest()) == (60_000_000, digest.digest())
    with sandbox.files.stream("/tmp/large") as download:
        next(download)
    assert list(download) == []
    assert len(sandbox.files.read_bytes("/tmp/large")) == 60_000_000


def test_an_upload_that_fails_half_way_is_no_answer(sandbox: Sandbox) -> None:
    def fails() -> Iterator[bytes]:
        yield bytes(MIB)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sandbox.files.write("/tmp/x", fails())
    assert sandbox.session.run("echo still").stdout == "still\n"


def test_trees_go_in_and_out(sandbox: Sandbox, tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "sub").mkdir(parents=True)
    (project / "run").write_text("#!/bin/sh\necho ran\n")
    (project / "run").chmod(0o755)
    (project / "sub" / "dätä").write_bytes(bytes(MIB))
    (project / "link").symlink_to("run")
    sandbox.files.upload(project, "/work")
    assert sandbox.commands.run(["/work/link"]).stdout == "ran\n"
    assert sandbox.files.stat("/work/sub/dätä").size == MIB
    sandbox.files.upload(project / "run", "/single")
    assert sandbox.files.stat("/single").mode == 0o755
    sandbox.files.download("/work", tmp_path / "out")
    out = tmp_path / "out" / "work"
    assert (out / "sub" / "dätä").read_bytes() == bytes(MIB)
    assert os.readlink(out / "link") == "run"
    assert os.access(out / "run", os.X_OK)
    assert (out / "run").stat().st_uid == os.getuid()
    sandbox.files.download("/single", tmp_path / "out")
    assert (tmp_path / "out" / "single").read_text() == "#!/bin/sh\necho ran\n"


def test_an_archive_is_a_tar_that_can_be_unpacked(sandbox: Sandbox) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("dir/file")
        entry.size = 5
        archive.addfile(entry, io.BytesIO(b"hello"))
    sandbox.files.make_dir("/in")
    sandbox.files.extract("/in", buffer.getvalue())
    assert sandbox.files.read("/in/dir/file") == "hello"
    packed = io.BytesIO(b"".join(sandbox.files.archive("/in/dir")))
    with tarfile.open(fileobj=packed) as archive:
        assert [each.name for each in archive if each.isfile()] == ["dir/file"]


def test_a_download_writes_through_no_link(sandbox: Sandbox, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    sandbox.session.run(f"mkdir -p /evil; ln -s {outside} /evil/out; mkfifo /evil/fifo; echo x > /evil/x; ln /evil/x /evil/y; chmod 6755 /evil/x", check=True)  # fmt: skip  # noqa: E501
    sandbox.files.download("/evil", tmp_path / "in")
    evil = tmp_path / "in" / "evil"
    assert os.readlink(evil / "out") == str(outside)
    assert sorted(os.listdir(evil)) == ["out", "x", "y"]
    assert (evil / "y").read_text() == "x\n"
    assert (evil / "x").stat().st_mode & 0o7777 == 0o755
    # Now a directory has the name of what was a link.
    sandbox.session.run("rm /evil/out; mkdir /evil/out; echo gotcha > /evil/out/file", check=True)
    with pytest.raises(OSError, match="not empty"):
        sandbox.files.download("/evil", tmp_path / "in")
    assert os.listdir(outside) == []
    assert os.listdir(tmp_path / "in") == ["evil"]


def test_archives_that_lead_out_are_refused(tmp_path: Path) -> None:
    def packed(*entries: tuple[str, bytes, str]) -> io.BytesIO:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, kind, target in entries:
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = kind, target
                archive.addfile(entry)
        buffer.seek(0)
        return buffer

    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    link, hard, file = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.REGTYPE
    for entries in [
        [("../x", file, "")],
        [("/x", file, "")],
        [("a/../../x", file, "")],
        [("a", link, str(outside)), ("a/x", file, "")],
        [("a", link, str(outside)), ("a/x", link, "y")],
        [("a", link, str(outside)), ("b", hard, "a/secret")],
        [("b", hard, "../outside/secret")],
        [("b", hard, str(outside / "secret"))],
    ]:
        with pytest.raises((ProtocolError, OSError)):
            _unpack(packed(*entries), inside)
        assert os.listdir(inside) == []
        assert os.listdir(outside) == ["secret"]
        assert (outside / "secret").stat().st_nlink == 1
