"""Many tasks on one server, and tasks that are cancelled."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import threading
from collections.abc import AsyncIterator

import pytest

from conftest import SOON, run
from forkyard import (
    AsyncClient,
    AsyncSandbox,
    CommandFailed,
    NotFound,
    Output,
    Sandbox,
    Timeout,
)

MIB = 1 << 20


def test_everything_works_with_await() -> None:
    async def work() -> None:
        async with await AsyncSandbox.create(name="awaited") as sandbox:
            await sandbox.session.run("count=41")
            async with (await sandbox.fork())[0] as clone:
                assert (await clone.session.run("echo $((count + 1))")).stdout == "42\n"
            await sandbox.files.write("/work/a", "a")
            assert [each.name for each in await sandbox.files.list("/work")] == ["a"]
            assert not await sandbox.files.exists("/work/b")
            with pytest.raises(NotFound):
                await sandbox.files.read("/work/b")
            with pytest.raises(CommandFailed):
                await sandbox.commands.run("exit 1", check=True)
            assert (await AsyncSandbox.connect("awaited")).id == sandbox.id
            async with await sandbox.pty.start("tty") as terminal:
                assert (await terminal.wait()).stdout.startswith("/dev/pts/")
            await sandbox.reset()
            async with AsyncClient() as client:
                assert sandbox.id in {each.id for each in await client.list()}
                assert (await client.health()).sandboxes >= 1
        assert sandbox.id not in {each.id for each in await AsyncSandbox.list()}

    run(work())


def test_fifty_commands_at_once_lose_no_byte() -> None:
    async def one(sandbox: AsyncSandbox, number: int) -> None:
        script = f"head -c {MIB} /dev/urandom | tee /tmp/{number}; sha256sum /tmp/{number} >&2"
        result = await sandbox.commands.run(script)
        assert len(result.stdout_bytes) == MIB
        assert hashlib.sha256(result.stdout_bytes).hexdigest() == result.stderr.split()[0]

    async def work() -> None:
        async with await AsyncSandbox.create() as sandbox:
            await asyncio.gather(*(one(sandbox, number) for number in range(50)))

    run(work())


def test_fifty_streams_go_on_side_by_side() -> None:
    """Each is answered before any may end: none holds up another."""

    async def work() -> None:
        async with await AsyncSandbox.create() as sandbox:
            start = sandbox.commands.start
            handles = await asyncio.gather(*(start(["cat"], stdin=True) for _ in range(50)))
            for number, handle in enumerate(handles):
                await handle.send_stdin(f"{number}")
                assert await anext(handle) == Output("stdout", f"{number}".encode())
            await asyncio.gather(*(handle.close_stdin() for handle in handles))
            results = await asyncio.gather(*(handle.wait() for handle in handles))
            assert {result.exit_code for result in results} == {0}

    run(work())


def test_many_sandboxes_are_made_and_removed_at_once() -> None:
    async def one(number: int) -> str:
        async with await AsyncSandbox.create() as sandbox:
            return (await sandbox.session.run(f"echo {number}")).stdout

    async def work() -> None:
        said = await asyncio.gather(*(one(number) for number in range(24)))
        assert said == [f"{number}\n" for number in range(24)]

    run(work())


def test_a_cancelled_wait_loses_no_output() -> None:
    async def work() -> None:
        async with await AsyncSandbox.create() as sandbox:
            script = "for i in $(seq 2000); do echo line $i; done"
            async with await sandbox.commands.start(script) as handle:
                cancelled = 0
                while True:
                    waiting = asyncio.ensure_future(handle.wait())
                    # Gives it a moment that is too short, at first.
                    done, _ = await asyncio.wait([waiting], timeout=0.0005 * cancelled)
                    if done:
                        break
                    waiting.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await waiting
                    cancelled += 1
                assert cancelled
            lines = (await waiting).stdout.splitlines()
            assert lines == [f"line {number}" for number in range(1, 2001)]

    run(work())


def test_a_cancelled_run_ends_the_command_and_harms_no_other() -> None:
    async def work() -> None:
        async with await AsyncSandbox.create() as sandbox:
            for _ in range(5):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(sandbox.commands.run("sleep 60"), 0.05)
            for _ in range(5):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(sandbox.session.run("sleep 0.2; echo old"), 0.02)
            # No answer is taken for that of another question.
            assert (await sandbox.session.run("echo new")).stdout == "new\n"
            deadline = asyncio.get_running_loop().time() + SOON
            while any(each.exit is None for each in await sandbox.commands.list()):
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.01)

    run(work())


def test_a_handle_that_is_left_wakes_the_task_that_waits_for_it() -> None:
    async def work() -> None:
        async with await AsyncSandbox.create() as sandbox:
            handle = await sandbox.commands.start("sleep 60")
            waiting = asyncio.ensure_future(handle.wait())
            await asyncio.sleep(0.05)
            handle.disconnect()
            with pytest.raises(Exception, match="left before it ended"):
                await waiting

    run(work())


def test_one_task_sends_while_another_reads() -> None:
    async def work() -> None:
        async with await AsyncSandbox.create() as sandbox:
            async with await sandbox.commands.start(["cat"], stdin=True) as handle:
                data = bytes(range(256)) * (8 * MIB // 256)

                async def send() -> None:
                    await handle.send_stdin(data)
                    await handle.close_stdin()

                _, result = await asyncio.gather(send(), handle.wait())
                assert result.stdout_bytes == data
            # And where nobody reads meanwhile.
            assert (await sandbox.commands.run(["cat"], stdin=data)).stdout_bytes == data

    run(work())


def test_callbacks_and_contents_may_be_awaited() -> None:
    async def work() -> None:
        seen: list[str] = []

        async def see(text: str) -> None:
            await asyncio.sleep(0)
            seen.append(text)

        async def pieces() -> AsyncIterator[bytes]:
            for piece in [b"one ", b"", b"two"]:
                await asyncio.sleep(0)
                yield piece

        async with await AsyncSandbox.create() as sandbox:
            await sandbox.commands.run("echo x", on_stdout=see)
            assert seen == ["x\n"]
            await sandbox.files.write("/tmp/x", pieces())
            assert await sandbox.files.read("/tmp/x") == "one two"
            async with await sandbox.files.stream("/tmp/x") as download:
                assert b"".join([piece async for piece in download]) == b"one two"

    run(work())


def test_an_answer_that_stays_away_is_not_waited_for() -> None:
    async def work() -> None:
        async with await AsyncSandbox.create() as sandbox:
            async with await sandbox.commands.start("sleep 60") as handle:
                with pytest.raises(Timeout):
                    await sandbox.commands.wait(handle.id, timeout=0.1)
                with pytest.raises(Timeout):
                    await handle.wait(timeout=0.1)
            async with AsyncClient(timeout=0.1) as client:
                slow = await client.connect(sandbox.id)
                # A line of a session takes as long as it takes.
                assert (await slow.session.run("sleep 0.3; echo done")).stdout == "done\n"

    run(work())


def test_one_server_serves_loop_after_loop() -> None:
    async def ask() -> int:
        async with AsyncClient() as client:
            return (await client.health()).pid

    async def ask_default() -> None:
        await AsyncSandbox.list()

    assert run(ask()) == run(ask())
    run(ask_default())
    run(ask_default())


def test_loops_in_several_threads_share_a_sandbox() -> None:
    with Sandbox.create() as made:
        said: list[str] = []

        async def ask() -> None:
            sandbox = await AsyncSandbox.connect(made.id)
            results = await asyncio.gather(*(sandbox.commands.run("echo x") for _ in range(10)))
            said.extend(result.stdout for result in results)

        threads = [threading.Thread(target=run, args=(ask(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert said == ["x\n"] * 40


def test_asyncio_is_loaded_only_where_it_is_used() -> None:
    code = "import sys, forkyard; sys.exit('asyncio' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
