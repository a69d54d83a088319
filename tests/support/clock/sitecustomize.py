"""A wall clock that a test may set, for every process of a gateway: on its PYTHONPATH, Python imports this first.

Eight bytes in the file `clock` of the process's directory say by how many nanoseconds it is wrong, from now on. The
monotonic clock is left as it is: that a step of the one is none of the other is what a kernel promises.
"""

import mmap
import os
import struct
import time

if os.path.exists("gateway.yaml"):
    with open("clock", "a+b") as file:
        file.truncate(8)
        page = mmap.mmap(file.fileno(), 8)
    right_ns = time.time_ns

    def wrong_ns() -> int:
        error: int = struct.unpack_from("<q", page)[0]
        return right_ns() + error

    time.time_ns = wrong_ns
    time.time = lambda: wrong_ns() / 1e9
