"""A server that is started on demand, killed, and started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from conftest import run, until
from forkyard import AsyncClient, Client, NotFound, ServerGone


def kill_server(client: Client) -> int:
    """Kills the server as a crash would; tells its process id."""
    pid = client.health().pid
    os.kill(pid, signal.SIGKILL)
    until("its end", lambda: not is_alive(pid))
    return pid


def is_alive(pid: int) -> bool:
    """Whether any of its threads is; they end one by one, and the last one closes its sockets."""
    try:
        stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except FileNotFoundError:
        return Path(f"/proc/{pid}").exists() and is_alive(pid)
    return any(stat.rpartition(")")[2].split()[0] not in "ZX" for stat in stats)


def test_the_first_use_starts_a_server_and_many_at_once_reach_the_same(own: Client) -> None:
    assert not Path(own.socket).exists()
    pids: list[int] = []

    def ask() -> None:
        with Client(own.socket, store=own.store) as client:
            pids.append(client.health().pid)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 8
    assert len(set(pids)) == 1
    with Client(own.socket, store=own.store, start=False) as client:
        assert client.health().pid == pids[0]


def test_sandboxes_sessions_and_kept_connections_outlive_the_server(own: Client) -> None:
    with own.create() as sandbox:
        sandbox.session.run("X=1")
        sandbox.files.write("/root/note", "kept")
        killed = kill_server(own)
        assert sandbox.session.run("echo $X").stdout == "1\n"
        assert sandbox.files.read("/root/note") == "kept"
        assert own.health().pid != killed


def test_a_stream_goes_on_at_the_next_server_without_a_byte_lost_or_twice(own: Client) -> None:
    script = "for i in $(seq 20000); do echo line $i; echo error $i >&2; done; read x; echo $x"
    with own.create() as sandbox, sandbox.commands.start(script, stdin=True) as handle:
        out = {"stdout": b"", "stderr": b""}

        def take(until_bytes: int) -> None:
            while len(out["stdout"]) < until_bytes:
                output = next(handle)
                out[output.stream] += output.data

        for size in [1, 60_000, 150_000]:
            take(size)
            kill_server(own)
        handle.send_stdin("the end\n")
        rest = handle.wait()
        assert rest.exit_code == 0
        stdout = out["stdout"] + rest.stdout_bytes
        stderr = out["stderr"] + rest.stderr_bytes
        numbers = range(1, 20_001)
        assert stdout.decode() == "".join(f"line {n}\n" for n in numbers) + "the end\n"
        assert stderr.decode() == "".join(f"error {n}\n" for n in numbers)


def test_stdin_goes_on_at_the_next_server(own: Client) -> None:
    with own.create() as sandbox, sandbox.commands.start(["cat"], stdin=True) as handle:
        handle.send_stdin("before ")
        assert next(handle).data == b"before "
        kill_server(own)
        handle.send_stdin("after")
        assert next(handle).data == b"after"
        handle.close_stdin()
        assert handle.wait().exit_code == 0


def test_one_who_only_waits_finds_the_command_again(own: Client) -> None:
    with own.create() as sandbox:
        done: list[str] = []

        def wait() -> None:
            done.append(sandbox.commands.run("sleep 1; echo done").stdout)

        thread = threading.Thread(target=wait)
        thread.start()
        until("the command", sandbox.commands.list)
        kill_server(own)
        thread.join()
        assert done == ["done\n"]


def test_tasks_find_their_commands_again(own: Client) -> None:
    async def work() -> None:
        async with AsyncClient(own.socket, store=own.store) as client:  # noqa: SIM117
            async with await client.create() as sandbox:
                script = "echo begun; read x; seq 5000; sleep 0.3; echo $x"
                handles = [await sandbox.commands.start(script, stdin=True) for _ in range(10)]
                for handle in handles:
                    assert (await anext(handle)).data == b"begun\n"
                    await handle.send_stdin("end\n")
                waiting = [asyncio.ensure_future(handle.wait()) for handle in handles]
                await asyncio.sleep(0.05)
                os.kill((await client.health()).pid, signal.SIGKILL)
                expected = "".join(f"{n}\n" for n in range(1, 5001)) + "end\n"
                for result in await asyncio.gather(*waiting):
                    assert result.stdout == expected

    run(work())


def test_a_command_that_ended_meanwhile_is_told_whole(own: Client) -> None:
    with own.create() as sandbox, sandbox.commands.start("echo a; sleep 0.2; echo b") as handle:
        assert next(handle).data == b"a\n"
        pid = kill_server(own)
        assert not is_alive(pid)
        time.sleep(0.5)
        assert handle.wait().stdout == "b\n"


def test_a_question_to_a_server_that_dies_is_told(own: Client) -> None:
    with own.create() as sandbox:
        pid = own.health().pid
        threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
        with pytest.raises(ServerGone):
            sandbox.session.run("sleep 2")
        assert sandbox.session.run("echo next").stdout == "next\n"


def test_a_server_that_is_not_to_be_started_is_missed(own: Client) -> None:
    with own.create() as sandbox:
        with Client(own.socket, store=own.store, start=False) as client:
            same = client.connect(sandbox.id)
            kill_server(own)
            with pytest.raises(ServerGone, match="no server runs there"):
                same.session.run("echo")
        assert sandbox.session.run("echo back").stdout == "back\n"


def test_a_sandbox_that_is_gone_ends_the_search_for_its_command(own: Client) -> None:
    with own.create() as sandbox, sandbox.commands.start("sleep 60") as handle:
        sandbox.delete()
        kill_server(own)
        begun = time.monotonic()
        with contextlib.suppress(NotFound):
            assert handle.wait().signal == signal.SIGKILL
        assert time.monotonic() - begun < 30


def test_stop_leaves_sandboxes_or_takes_them_along(own: Client) -> None:
    sandbox = own.create()
    sandbox.session.run("X=1")
    own.stop(sandboxes="keep")
    assert sandbox.session.run("echo $X").stdout == "1\n"
    own.stop(sandboxes="delete")
    with pytest.raises(NotFound):
        sandbox.info()


def test_a_forked_process_has_connections_of_its_own(own: Client) -> None:
    with own.create() as sandbox:
        sandbox.session.run("X=parent")
        child = os.fork()
        if child == 0:
            said = [sandbox.session.run("echo $X").stdout for _ in range(20)]
            os._exit(0 if said == ["parent\n"] * 20 else 1)
        said = [sandbox.session.run("echo of-$X").stdout for _ in range(20)]
        assert said == ["of-parent\n"] * 20
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_thousands_of_questions_need_one_connection(own: Client) -> None:
    with own.create() as sandbox:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(2_000):
            sandbox.session.run("true")
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_client_that_is_killed_in_the_middle_leaves_no_command(own: Client) -> None:
    code = (
        "import sys; from forkyard import Client\n"
        "sandbox = Client(sys.argv[1], store=sys.argv[2]).connect(sys.argv[3])\n"
        "for output in sandbox.commands.start('yes'): print(output.stream, flush=True)\n"
    )
    with own.create() as sandbox:
        argv = ["/usr/bin/env", "python3", "-c", code, own.socket, own.store, sandbox.id]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == b"stdout\n"
            client.kill()
        until("its end", lambda: all(each.exit for each in sandbox.commands.list()))
