"""Best of N without a model: one prepared sandbox, N live copies, the best answer wins.

A project is set up once, in one sandbox. Each candidate is a patch that tries to make a slow
function fast; it is tried in a fork of that sandbox, so all start from the same files, the same
shell and the same data in memory, and none sees what another does. Candidates are scored by the
project's own tests and by the time that they take. A model would write the candidates; nothing else
would change.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from forkyard import AsyncSandbox

SLOW = """
fib() {
    if [ "$1" -lt 2 ]; then echo "$1"; return; fi
    echo $(( $(fib $(($1 - 1))) + $(fib $(($1 - 2))) ))
}
"""

CHECK = """
. ./fib.sh
for pair in 0:0 1:1 2:1 7:13 10:55; do
    [ "$(fib "${pair%:*}")" = "${pair#*:}" ] || { echo "fib ${pair%:*} is wrong" >&2; exit 1; }
done
"""

CANDIDATES = {
    "table": """
fib() { set -- "$1" 0 1 1 2 3 5 8; shift $(($1 + 1)); echo "$1"; }
""",
    "loop": """
fib() {
    a=0 b=1
    for _ in $(seq "$1"); do c=$((a + b)) a=$b b=$c; done
    echo $a
}
""",
    "unchanged": SLOW,
}


@dataclass
class Trial:
    """What came of a candidate."""

    name: str
    correct: bool
    seconds: float
    why: str


async def attempt(sandbox: AsyncSandbox, name: str, patch: str) -> Trial:
    """Tries a candidate in a fork of its own, which is deleted afterwards."""
    async with sandbox:
        # The shell of the fork is where the original's was: in the project, with CHECK defined.
        await sandbox.files.write("/project/fib.sh", patch)
        begun = asyncio.get_running_loop().time()
        checked = await sandbox.session.run('(eval "$CHECK")', timeout=30)
        seconds = asyncio.get_running_loop().time() - begun
        return Trial(name, checked.exit_code == 0, seconds, checked.stderr.strip())


async def main() -> None:
    async with await AsyncSandbox.create() as sandbox:
        await sandbox.files.write("/project/fib.sh", SLOW)
        await sandbox.session.run(f"cd /project; CHECK='{CHECK}'", check=True)

        clones = await sandbox.fork(len(CANDIDATES))
        print(f"{len(clones)} forks in {clones.report.total_us / 1000:.1f} ms")
        trials = await asyncio.gather(
            *(
                attempt(clone, name, patch)
                for clone, (name, patch) in zip(clones, CANDIDATES.items(), strict=True)
            )
        )

        for trial in trials:
            said = "passes" if trial.correct else f"fails: {trial.why}"
            print(f"{trial.name:10} {trial.seconds * 1000:7.1f} ms  {said}")
        best = min((trial for trial in trials if trial.correct), key=lambda trial: trial.seconds)
        print(f"best: {best.name}")

        # The original was not touched by any of it; now it gets the winner's patch.
        await sandbox.files.write("/project/fib.sh", CANDIDATES[best.name])
        await sandbox.session.run('(eval "$CHECK")', check=True)


if __name__ == "__main__":
    asyncio.run(main())
