"""Sandboxes: made, listed, forked, kept, paused, reset and removed."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from conftest import until
from forkyard import (
    Client,
    Conflict,
    ForkyardError,
    InvalidRequest,
    Limits,
    NotFound,
    Sandbox,
    Volume,
)


def test_a_sandbox_is_what_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("from the host")
    volume = Volume(str(tmp_path), "/host", read_only=True)
    with Sandbox.create(
        "host",
        name="asked",
        env={"LANG": "C", "WHO": "ä"},
        user="root",
        workdir="/tmp",
        timeout=3600,
        network="none",
        volumes=[volume],
        metadata={"team": "search"},
    ) as sandbox:
        assert sandbox.name == "asked"
        line = sandbox.session.run('echo "$WHO $PWD $(cat /host/note)"; touch /host/x')
        assert line.stdout == "ä /tmp from the host\n"
        assert "Read-only" in line.stderr
        info = sandbox.info()
    assert (info.id, info.name, info.image, info.state) == (sandbox.id, "asked", "host", "running")
    spec = info.spec
    assert (spec.env, spec.user, spec.workdir) == ({"LANG": "C", "WHO": "ä"}, "root", "/tmp")
    assert (spec.timeout, spec.network, spec.volumes) == (3600.0, "none", [volume])
    assert spec.metadata == {"team": "search"}
    assert info.deadline is not None
    assert info.started_at is not None
    assert info.deadline - info.created_at == timedelta(hours=1)
    assert abs(datetime.now(timezone.utc) - info.started_at) < timedelta(minutes=5)
    assert info.usage is not None
    assert info.pid


def test_limits_hold() -> None:
    try:
        sandbox = Sandbox.create(memory=64 << 20, cpus=0.5, pids=32)
    except InvalidRequest as error:
        pytest.skip(f"limits: {error.message}")
    with sandbox:
        assert sandbox.info().spec.limits == Limits(memory=64 << 20, cpus=0.5, pids=32)
        assert (sandbox.usage().memory or 0) < 64 << 20
        # dash does not try again, as bash does for many seconds.
        script = "for i in $(seq 64); do sleep 60 >/dev/null 2>&1 & done"
        many = sandbox.commands.run(["/bin/sh", "-c", script], timeout=30)
        assert many.exit_code != 0
        assert "fork" in many.stderr.lower()


def test_a_sandbox_is_found_by_id_and_name() -> None:
    with Sandbox.create(name="found") as sandbox:
        sandbox.session.run("X=1")
        for key in [sandbox.id, "found"]:
            again = Sandbox.connect(key)
            assert again.id == sandbox.id
            assert again.session.run("echo $X").stdout == "1\n"
        assert sandbox.id in {each.id for each in Sandbox.list()}
    assert sandbox.id not in {each.id for each in Sandbox.list()}


def test_a_context_deletes_and_does_not_mind_if_it_was_deleted() -> None:
    with Sandbox.create() as sandbox:
        sandbox.delete()
    with pytest.raises(NotFound) as raised:
        sandbox.delete()
    assert raised.value.status == 404
    assert raised.value.hint == "`forkyard ls -a` lists them"
    with pytest.raises(ZeroDivisionError), Sandbox.create() as sandbox:
        _ = 1 / 0
    with pytest.raises(NotFound):
        sandbox.info()


def test_what_makes_no_sense_is_refused_in_the_words_of_the_server() -> None:
    with Sandbox.create(name="taken"), pytest.raises(Conflict, match="name taken"):
        Sandbox.create(name="taken")
    with pytest.raises(NotFound, match="no such image"):
        Sandbox.create("no-such-image")
    with pytest.raises(NotFound, match="no such snapshot"):
        Sandbox.create(snapshot="no-such-snapshot")
    for bad in [{"name": "a b"}, {"timeout": -1}, {"workdir": "relative"}, {"memory": 1}]:
        with pytest.raises(InvalidRequest):
            Sandbox.create(**bad)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for bad in ["../x", "a/b", "", "no such", "\ud800"]:
        with pytest.raises(ForkyardError) as raised:
            Sandbox.connect(bad)
        assert isinstance(raised.value, NotFound | InvalidRequest)


def test_a_reset_takes_files_and_session_back(sandbox: Sandbox) -> None:
    sandbox.session.run("X=1; rm -rf /etc; echo new > /root/new")
    sandbox.reset()
    assert sandbox.session.run("echo ${X:-gone}").stdout == "gone\n"
    assert sandbox.files.exists("/etc/hostname")
    assert not sandbox.files.exists("/root/new")


def test_the_journal_outlives_the_sandbox(sandbox: Sandbox) -> None:
    sandbox.reset()
    sandbox.delete()
    until("the last entry", lambda: sandbox.logs()[-1].kind == "delete")
    kinds = [event.kind for event in sandbox.logs()]
    assert kinds[0] == "create"
    assert "reset" in kinds
    assert {event.sandbox for event in sandbox.logs()} == {sandbox.id}


def test_a_deadline_is_set_moved_and_taken_away(sandbox: Sandbox) -> None:
    assert sandbox.info().deadline is None
    sandbox.set_timeout(600)
    first = sandbox.info().deadline
    sandbox.set_timeout(1200)
    second = sandbox.info().deadline
    assert first is not None
    assert second is not None
    assert second > first
    sandbox.set_timeout(None)
    assert sandbox.info().deadline is None
    sandbox.set_timeout(0.05)
    until("its end", lambda: sandbox.info().state == "ended")
    assert sandbox.info().reason == "deadline"
    with pytest.raises(Conflict):
        sandbox.session.run("echo too late")


def test_clones_go_on_from_where_the_original_was(sandbox: Sandbox) -> None:
    sandbox.session.run("cd /tmp; count=41; echo draft > note")
    with sandbox.fork()[0] as clone:
        assert clone.info().parent == sandbox.id
        assert clone.session.run("echo $((count + 1)) $PWD $(cat note)").stdout == "42 /tmp draft\n"
    clones = sandbox.fork(3, name="try")
    try:
        assert [each.name for each in clones] == ["try-1", "try-2", "try-3"]
        assert clones.report.running_us <= clones.report.total_us
        assert clones.report.processes >= 1
        for number, clone in enumerate(clones):
            clone.session.run(f"count=$((count + {number})); echo {number} > note")
        said = [clone.session.run("echo $count $(cat note)").stdout for clone in clones]
        assert said == ["41 0\n", "42 1\n", "43 2\n"]
        assert sandbox.session.run("echo $count $(cat note)").stdout == "41 draft\n"
    finally:
        for clone in clones:
            clone.delete()
    for bad in [0, 1001]:
        with pytest.raises(InvalidRequest):
            sandbox.fork(bad)


def test_sandboxes_go_on_from_a_snapshot(sandbox: Sandbox, client: Client) -> None:
    sandbox.session.run("cd /tmp; count=41")
    taken = sandbox.snapshot("warm")
    try:
        assert (taken.name, taken.kind, taken.state) == ("warm", "memory", "ready")
        assert taken.sandbox == sandbox.id
        assert taken.report is not None
        assert taken.report.durable_us is not None
        for which in ["warm", taken.id, taken]:
            with Sandbox.create(snapshot=which) as again:
                assert again.report is not None
                assert again.session.run("echo $((count + 1)) $PWD").stdout == "42 /tmp\n"
        with pytest.raises(Conflict, match="name taken"):
            sandbox.snapshot("warm")
    finally:
        client.snapshots.delete("warm")


def test_a_paused_sandbox_goes_on(sandbox: Sandbox) -> None:
    sandbox.session.run("count=41")
    assert sandbox.pause().durable_us is not None
    assert sandbox.info().state == "paused"
    with pytest.raises(Conflict) as raised:
        sandbox.session.run("echo $count")
    assert "resume" in (raised.value.hint or "")
    assert sandbox.resume().running_us > 0
    assert sandbox.session.run("echo $((count + 1))").stdout == "42\n"
    with pytest.raises(Conflict):
        sandbox.resume()


def test_threads_share_a_sandbox(sandbox: Sandbox) -> None:
    said: dict[int, str] = {}

    def ask(number: int) -> None:
        for _ in range(10):
            said[number] = sandbox.commands.run(["echo", str(number)]).stdout
            sandbox.files.write(f"/tmp/{number}", str(number))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {number: f"{number}\n" for number in range(8)}
    assert [sandbox.files.read(f"/tmp/{number}") for number in range(8)] == list("01234567")
