"""What importing the core costs beside its pure dependencies, over a bare interpreter. Needs the environment only."""

from __future__ import annotations

import os
import subprocess
import sys
import time

ROUNDS = 15
#: Bytecode has to be there, as it is where packages were installed the usual way.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
BARE = "pass"
STATEMENTS = [BARE, "import pluggy, attrs, pendulum", "import pipeline_core", "from pipeline_core import Pipeline"]


def seconds(statement: str) -> float:
    """One fresh interpreter that runs the statement."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, env=ENVIRONMENT)
    return time.perf_counter() - begun


def main() -> None:
    """Prints the least of many rounds, in turns: what noise adds is never negative."""
    for statement in STATEMENTS:
        seconds(statement)  # writes the bytecode
    best = dict.fromkeys(STATEMENTS, float("inf"))
    for _ in range(ROUNDS):
        for statement in STATEMENTS:
            best[statement] = min(best[statement], seconds(statement))
    base = best[STATEMENTS[1]] - best[BARE]
    for statement in STATEMENTS[1:]:
        above = best[statement] - best[BARE]
        print(f"{statement:40} {above * 1000:6.0f} ms over a bare interpreter, {above / base:.2f}x")


if __name__ == "__main__":
    main()
