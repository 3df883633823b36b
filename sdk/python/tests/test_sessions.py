"""Lines in the shell that stays."""

from __future__ import annotations

import pytest

from forkyard import CommandFailed, NotFound, Sandbox

MIB = 1 << 20


def test_lines_build_on_each_other(sandbox: Sandbox) -> None:
    sandbox.session.run('cd /tmp; N=1; greet() { echo "$1 from $PWD"; }')
    line = sandbox.session.run('N=$((N + 1)); greet "ä $N"; echo why >&2; false')
    assert (line.exit_code, line.stdout, line.stderr) == (1, "ä 2 from /tmp\n", "why\n")
    assert sandbox.session.run("echo $?").stdout == "1\n"
    assert sandbox.session.run("cat <<E\na\nE\necho b").stdout == "a\nb\n"


def test_a_line_can_be_checked(sandbox: Sandbox) -> None:
    sandbox.session.run("true", check=True)
    with pytest.raises(CommandFailed, match="exited with 2") as raised:
        sandbox.session.run("ls /nowhere", check=True)
    assert "nowhere" in raised.value.result.stderr


def test_output_that_is_no_text_is_kept(sandbox: Sandbox) -> None:
    line = sandbox.session.run(r"printf '\377a'; printf '\376' >&2")
    assert (line.stdout_bytes, line.stderr_bytes) == (b"\xffa", b"\xfe")
    assert line.stdout == "\ufffda"
    assert sandbox.session.run("printf 'ä'").stdout_bytes == "ä".encode()


def test_large_output_comes_whole_or_says_that_it_does_not(sandbox: Sandbox) -> None:
    line = sandbox.session.run(f"head -c {4 * MIB} /dev/zero | tr '\\0' x")
    assert line.stdout == "x" * (4 * MIB)
    assert not line.truncated
    line = sandbox.session.run(f"head -c {17 * MIB} /dev/zero | tr '\\0' x")
    assert len(line.stdout) == 16 * MIB
    assert line.truncated


def test_time_that_is_up_ends_the_line_and_not_the_shell(sandbox: Sandbox) -> None:
    sandbox.session.run("N=1")
    line = sandbox.session.run("sleep 60", timeout=0.1)
    assert (line.exit_code, line.timed_out) == (124, True)
    assert sandbox.session.run("echo $N").stdout == "1\n"


def test_a_shell_that_ends_is_replaced(sandbox: Sandbox) -> None:
    sandbox.session.run("N=1")
    line = sandbox.session.run("exit 3")
    assert (line.exit_code, line.shell_ended) == (3, True)
    assert sandbox.session.run("N=${N:-gone}; echo $N").stdout == "gone\n"
    sandbox.session.restart()
    assert sandbox.session.run("echo ${N:-again}").stdout == "again\n"


def test_lines_of_any_text_arrive(sandbox: Sandbox) -> None:
    text = "'\"\\$x\t\u2028\U0001f980 ä"
    quoted = text.replace("'", "'\\''")
    assert sandbox.session.run(f"printf %s '{quoted}'").stdout == text
    long = "x" * 200_000
    assert sandbox.session.run(f"echo {long}").stdout == long + "\n"


def test_a_session_of_a_deleted_sandbox_is_not_found() -> None:
    sandbox = Sandbox.create()
    sandbox.delete()
    with pytest.raises(NotFound):
        sandbox.session.run("echo")
