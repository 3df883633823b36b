"""What is written once is there with and without ``await``."""

from __future__ import annotations

import inspect
import pydoc
from typing import Any

import pytest

import forkyard

PAIRS: list[tuple[type[Any], type[Any]]] = [
    (forkyard.AsyncSandbox, forkyard.Sandbox),
    (forkyard.AsyncCommands, forkyard.Commands),
    (forkyard.AsyncCommandHandle, forkyard.CommandHandle),
    (forkyard.AsyncSession, forkyard.Session),
    (forkyard.AsyncFiles, forkyard.Files),
    (forkyard.AsyncDownload, forkyard.Download),
    (forkyard.AsyncPty, forkyard.Pty),
    (forkyard.AsyncClient, forkyard.Client),
    (forkyard.AsyncImages, forkyard.Images),
    (forkyard.AsyncSnapshots, forkyard.Snapshots),
]


def public(of: type[Any]) -> set[str]:
    return {name for name in dir(of) if not name.startswith("_")}


@pytest.mark.parametrize(("awaited", "blocking"), PAIRS)
def test_both_have_the_same_methods(awaited: type[Any], blocking: type[Any]) -> None:
    # Attributes that the constructors make are no names of the class on one side.
    made = {"id", "name", "report", "commands", "session", "files", "pty", "images", "snapshots"}
    assert public(awaited) - made == public(blocking) - made


@pytest.mark.parametrize(("awaited", "blocking"), PAIRS)
def test_both_take_the_same_and_say_the_same_of_it(awaited: type[Any], blocking: type[Any]) -> None:
    for name in public(blocking):
        ours, theirs = getattr(blocking, name), getattr(awaited, name, None)
        assert inspect.getdoc(ours), f"{blocking.__name__}.{name} says nothing of itself"
        if callable(theirs):
            taken = [inspect.signature(each).parameters for each in (ours, theirs)]
            assert list(taken[0]) == list(taken[1]), name


def test_everything_public_is_documented() -> None:
    for name in forkyard.__all__:
        it = getattr(forkyard, name)
        # Aliases of types say that they are classes, in Python 3.10.
        if issubclass(type(it), type):
            assert it.__doc__, name
    assert "echo hello" in pydoc.render_doc(forkyard)
