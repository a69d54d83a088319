"""The allocator setting: taken where there is glibc, and harmless where there is not."""

from __future__ import annotations

import platform
import subprocess
import sys

FAULTS = """
import resource, sys
from gateway.proxy.memory import keep_freed_memory
taken = keep_freed_memory() if sys.argv[1] == "kept" else False
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    bytes(bytearray(300_000))
before = faults()
for _ in range(200):
    bytes(bytearray(300_000))
print(int(taken), faults() - before)
"""


def run(mode: str) -> tuple[int, int]:
    out = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True).stdout
    taken, faults = out.split()
    return int(taken), int(faults)


def test_freed_blocks_come_again_without_page_faults():
    taken, kept = run("kept")
    assert taken == (platform.libc_ver()[0] == "glibc")
    if taken:
        assert kept < 200, "each large block still costs page faults"
