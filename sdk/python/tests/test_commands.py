"""Commands: run, streamed, sent to, ended, found again."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import threading
import time

import pytest

from conftest import until
from forkyard import (
    CommandFailed,
    Conflict,
    ForkyardError,
    InvalidRequest,
    NotFound,
    Output,
    Refused,
    Sandbox,
    Timeout,
)

MIB = 1 << 20


def test_a_command_is_a_line_or_a_program_with_arguments(sandbox: Sandbox) -> None:
    line = sandbox.commands.run("echo out | tr a-z A-Z; echo err >&2; exit 3")
    assert (line.exit_code, line.stdout, line.stderr) == (3, "OUT\n", "err\n")
    program = sandbox.commands.run(["printf", "%s|", "a b", "$HOME", "ä"])
    assert (program.exit_code, program.stdout) == (0, "a b|$HOME|ä|")


def test_options_of_a_command_hold(sandbox: Sandbox) -> None:
    result = sandbox.commands.run('echo "$WHO in $PWD"', env={"WHO": "me"}, cwd="/tmp")
    assert result.stdout == "me in /tmp\n"


@pytest.mark.usefixtures("ids")
def test_a_command_runs_as_another_user(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("id -un", user="nobody").stdout == "nobody\n"


def test_an_exit_code_is_no_error_unless_it_is_checked(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("exit 7").exit_code == 7
    with pytest.raises(CommandFailed) as raised:
        sandbox.commands.run("echo out; echo why >&2; exit 7", check=True)
    error = raised.value
    assert error.exit_code == 7
    assert (error.result.stdout, error.result.stderr) == ("out\n", "why\n")
    assert str(error).endswith("exited with 7: why")
    with pytest.raises(CommandFailed), sandbox.commands.start(["false"]) as handle:
        handle.wait(check=True)


def test_a_program_that_is_not_there_is_told_with_its_code(sandbox: Sandbox) -> None:
    with pytest.raises(Refused) as raised:
        sandbox.commands.run(["no-such-program"])
    assert raised.value.exit_code == 127
    sandbox.files.write("/tmp/data", "x", mode=0o644)
    with pytest.raises(Refused) as raised:
        sandbox.commands.run(["/tmp/data"])
    assert raised.value.exit_code == 126
    with pytest.raises(InvalidRequest):
        sandbox.commands.run([])


def test_time_that_is_up_ends_a_command(sandbox: Sandbox) -> None:
    result = sandbox.commands.run("echo begun; sleep 60", timeout=0.2)
    assert (result.exit_code, result.timed_out, result.stdout) == (124, True, "begun\n")
    with pytest.raises(CommandFailed, match="its time was up"):
        sandbox.commands.run("sleep 60", timeout=0.1, check=True)


def test_stdin_goes_in_whole_while_output_comes_out(sandbox: Sandbox) -> None:
    assert sandbox.commands.run(["tr", "a-z", "A-Z"], stdin="hällo").stdout == "HäLLO"
    assert sandbox.commands.run(["cat"]).stdout == ""
    # More than all pipes and sockets on the way hold: who only sends would wait for ever.
    data = bytes(range(256)) * (16 * MIB // 256)
    assert sandbox.commands.run(["cat"], stdin=data).stdout_bytes == data


def test_stdin_that_nobody_reads_is_dropped(sandbox: Sandbox) -> None:
    result = sandbox.commands.run("exec <&-; echo done", stdin=bytes(8 * MIB))
    assert (result.exit_code, result.stdout) == (0, "done\n")


def test_large_binary_output_comes_whole(sandbox: Sandbox) -> None:
    script = "head -c 67108864 /dev/urandom | tee /tmp/data; sha256sum /tmp/data >&2"
    result = sandbox.commands.run(script)
    assert len(result.stdout_bytes) == 64 * MIB
    assert hashlib.sha256(result.stdout_bytes).hexdigest() == result.stderr.split()[0]


def test_output_is_iterated_over_as_it_comes(sandbox: Sandbox) -> None:
    with sandbox.commands.start("cat; echo err >&2", stdin=True) as handle:
        for word in ["one", "two"]:
            handle.send_stdin(word)
            assert next(handle) == Output("stdout", word.encode())
        assert handle.exit is None
        handle.send_stdin(b"\xff")
        handle.close_stdin()
        rest = list(handle)
        assert b"".join(each.data for each in rest if each.stream == "stdout") == b"\xff"
        assert [each.text for each in rest if each.stream == "stderr"] == ["err\n"]
        # What was iterated over is not in the result.
        result = handle.wait()
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
        assert handle.exit is not None
        assert handle.exit.code == 0


def test_callbacks_get_text_with_whole_characters(sandbox: Sandbox) -> None:
    out: list[str] = []
    err: list[str] = []
    script = r"printf '\303'; sleep 0.2; printf '\244x\377'; echo e >&2; printf '\303'"
    result = sandbox.commands.run(script, on_stdout=out.append, on_stderr=err.append)
    assert "".join(out) == "äx\ufffd\ufffd"
    assert "".join(err) == "e\n"
    assert result.stdout_bytes == b"\xc3\xa4x\xff\xc3"
    assert result.stdout == "äx\ufffd\ufffd"


def test_a_callback_that_fails_ends_the_command(sandbox: Sandbox) -> None:
    def fail(_: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sandbox.commands.run("echo x; sleep 60", on_stdout=fail)
    until("its end", lambda: all(each.exit for each in sandbox.commands.list()))


def test_waiting_gives_up_and_goes_on_without_losing_output(sandbox: Sandbox) -> None:
    with sandbox.commands.start("echo first; read x; echo $x", stdin=True) as handle:
        with pytest.raises(Timeout):
            handle.wait(timeout=0.2)
        handle.send_stdin("second\n")
        assert handle.wait(timeout=30).stdout == "first\nsecond\n"


def test_a_command_ends_with_its_client(sandbox: Sandbox) -> None:
    handle = sandbox.commands.start("echo begun; sleep 60")
    assert next(handle).text == "begun\n"
    assert [each.id for each in sandbox.commands.list() if each.exit is None] == [handle.id]
    handle.disconnect()
    until("its end", lambda: all(each.exit for each in sandbox.commands.list()))
    with pytest.raises(ForkyardError, match="left before it ended"):
        handle.wait()


def test_a_detached_command_is_found_again(sandbox: Sandbox) -> None:
    with sandbox.commands.start("echo begun; read x; echo $x", stdin=True, detach=True) as handle:
        assert next(handle).text == "begun\n"
    info = sandbox.commands.get(handle.id)
    assert (info.id, info.pid, info.detach, info.tty, info.exit) == (
        handle.id, handle.pid, True, False, None,
    )  # fmt: skip
    with pytest.raises(Timeout):
        sandbox.commands.wait(handle.id, timeout=0.1)
    with pytest.raises(Conflict):
        sandbox.commands.forget(handle.id)
    with sandbox.commands.connect(handle.id, stdout_from=3) as again:
        assert again.info.argv == info.argv
        again.send_stdin("more\n")
        result = again.wait()
    assert (result.exit_code, result.stdout) == (0, "un\nmore\n")
    assert sandbox.commands.wait(handle.id).code == 0
    assert sandbox.commands.output(handle.id) == (b"begun\nmore\n", b"")
    sandbox.commands.forget(handle.id)
    for ask in [sandbox.commands.get, sandbox.commands.connect, sandbox.commands.forget]:
        with pytest.raises(NotFound, match="no such command"):
            ask(handle.id)


def test_signals_reach_a_command(sandbox: Sandbox) -> None:
    with sandbox.commands.start("trap 'echo caught; exit 5' TERM; echo ready; read x", stdin=True) as handle:  # fmt: skip  # noqa: E501
        assert next(handle).text == "ready\n"
        assert handle.kill(signal.SIGTERM)
        result = handle.wait()
    assert (result.exit_code, result.stdout) == (5, "caught\n")
    with sandbox.commands.start(["sleep", "60"]) as handle:
        assert sandbox.commands.kill(handle.id)
        result = handle.wait()
        assert (result.exit_code, result.signal) == (137, signal.SIGKILL)
        assert not handle.kill()
    assert not sandbox.commands.kill(999)
    with pytest.raises(InvalidRequest), sandbox.commands.start(["sleep", "60"]) as handle:
        handle.kill(99)


def test_one_thread_sends_while_another_reads(sandbox: Sandbox) -> None:
    with sandbox.commands.start(["cat"], stdin=True) as handle:
        data = bytes(range(256)) * (4 * MIB // 256)

        def send() -> None:
            for at in range(0, len(data), 100_000):
                handle.send_stdin(data[at : at + 100_000])
            handle.close_stdin()

        sender = threading.Thread(target=send)
        sender.start()
        assert handle.wait().stdout_bytes == data
        sender.join()


def test_a_handle_that_is_left_elsewhere_wakes_who_waits_for_it(sandbox: Sandbox) -> None:
    with sandbox.commands.start(["sleep", "60"]) as handle:
        threading.Timer(0.2, handle.disconnect).start()
        begun = time.monotonic()
        with pytest.raises(ForkyardError, match="left before it ended"):
            handle.wait()
        assert time.monotonic() - begun < 30


def test_a_sandbox_that_is_deleted_ends_its_commands() -> None:
    sandbox = Sandbox.create()
    with sandbox.commands.start(["sleep", "60"]) as handle:
        sandbox.delete()
        with contextlib.suppress(NotFound):
            assert handle.wait().signal == signal.SIGKILL
    with pytest.raises(NotFound):
        sandbox.commands.list()
    with pytest.raises(NotFound):
        sandbox.commands.kill(1)
