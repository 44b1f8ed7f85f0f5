"""Threads that spin while they wait against threads that sleep (OMP_WAIT_POLICY), on an idle and on a busy machine.

``python benchmarks/waiting_threads.py``: seconds for 16 tokens of one answer of the embedded model, and the ratio of the two
policies, which is what a noisy machine lets one say. Busy: another program on each core.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

ANSWER = """
import time
from ke_tools.config import Settings
from ke_tools.models.engine import Request
from ke_tools.servers.engines.loading import load_engine
engine = load_engine(Settings.load(), lambda _what: None)
asked = [Request(messages=({"role": "user", "content": "Tell me a story about a dog."},), max_tokens=16)]
engine.generate(asked)
began = time.monotonic()
engine.generate(asked)
print(time.monotonic() - began)
engine.close()
"""
ROUNDS = 5


def seconds(policy: str) -> float:
    """Time one answer in a process of its own."""
    environment = {**os.environ, "OMP_WAIT_POLICY": policy}
    told = subprocess.run([sys.executable, "-c", ANSWER], env=environment, check=True, capture_output=True, text=True)
    return float(told.stdout)


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """Keep so many cores busy."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    """Measure in turns, so that both policies see the same machine."""
    for name, programs in (("idle", 0), ("busy", os.cpu_count() or 1)):
        with busy(programs):
            rounds = [(seconds("ACTIVE"), seconds("PASSIVE")) for _ in range(ROUNDS)]
        active, passive = (median(column) for column in zip(*rounds, strict=True))
        ratio = median(a / p for a, p in rounds)
        print(f"{name}: spinning {active:.1f} s, sleeping {passive:.1f} s, spinning / sleeping {ratio:.2f}")


if __name__ == "__main__":
    main()
