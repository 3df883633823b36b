"""The Python in the documents, and the examples, do what they show."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent
ROOT = PACKAGE.parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), PACKAGE / "README.md"]

FENCE = re.compile(r"^```python\n(.*?)^```\n(?:\n?```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
"""A block of Python, and what it prints where that follows it."""


def blocks(document: Path) -> list[tuple[int, str, str | None]]:
    text = document.read_text()
    return [
        (text.count("\n", 0, found.start()) + 2, found[1], found[2])
        for found in FENCE.finditer(text)
    ]


@pytest.mark.parametrize(
    "document",
    [each for each in DOCUMENTS if blocks(each)],
    ids=lambda document: str(document.relative_to(ROOT)),
)
def test_documents_show_what_is(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a document run one after another, each knowing what was before."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "document"}
    for line, code, shown in blocks(document):
        printed = io.StringIO()
        # Errors name the document's own lines.
        compiled = compile("\n" * (line - 1) + code, str(document), "exec")
        with contextlib.redirect_stdout(printed):
            exec(compiled, names)
        if shown is None:
            continue
        pattern = ".*".join(re.escape(part) for part in shown.split("..."))
        assert re.fullmatch(pattern, printed.getvalue(), re.DOTALL), (
            f"{document}:{line} prints\n{printed.getvalue()}where this is shown:\n{shown}"
        )


@pytest.mark.parametrize(
    "example", sorted((PACKAGE / "examples").glob("*.py")), ids=lambda p: p.name
)
def test_examples_run(example: Path, tmp_path: Path) -> None:
    argv = [sys.executable, str(example)]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout
    listed = subprocess.run(
        [os.environ["FORKYARD_BIN"], "ls", "--all", "--quiet"], capture_output=True, check=True
    )
    assert listed.stdout == b"", "sandboxes that were left"
