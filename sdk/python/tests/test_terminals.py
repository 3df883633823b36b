"""Commands with a terminal."""

from __future__ import annotations

from conftest import SOON, until
from forkyard import CommandHandle, Sandbox


def read_until(handle: CommandHandle, text: str) -> str:
    seen = ""
    while text not in seen:
        seen += next(handle).text
    return seen


def test_a_terminal_is_typed_to_and_resized(sandbox: Sandbox) -> None:
    with sandbox.pty.start(rows=30, cols=100, env={"PS1": ""}) as terminal:
        assert terminal.info.tty
        terminal.send_stdin("stty size; tty\n")
        assert "/dev/pts/" in read_until(terminal, "/dev/pts/")
        terminal.resize(40, 120)
        terminal.send_stdin("echo size $(stty size)\n")
        read_until(terminal, "size 40 120")
        terminal.send_stdin("exit 5\n")
        assert terminal.wait(timeout=SOON).exit_code == 5


def test_a_command_of_its_own_gets_a_terminal(sandbox: Sandbox) -> None:
    with sandbox.pty.start("test -t 0 && stty size", rows=7, cols=9) as terminal:
        assert terminal.wait().stdout == "7 9\r\n"
    with sandbox.pty.start(["sh", "-c", "exit 3"], cwd="/tmp") as terminal:
        assert terminal.wait().exit_code == 3


def test_a_terminal_that_is_left_is_joined_again(sandbox: Sandbox) -> None:
    with sandbox.pty.start(["cat"], detach=True) as terminal:
        terminal.send_stdin("typed\n")
        read_until(terminal, "typed\r\ntyped\r\n")
    with sandbox.commands.connect(terminal.id) as again:
        assert read_until(again, "typed\r\ntyped\r\n")
        again.kill()
        assert again.wait().signal == 9
    until("its end", lambda: sandbox.commands.get(terminal.id).exit)
