"""A transport without a kernel: what is written is dropped or kept, and what it was told is remembered."""

from __future__ import annotations


class Dropped:
    """Bytes go nowhere; `closed` once anybody closed or aborted it."""

    def __init__(self) -> None:
        self.closed = False
        self.writes = 0

    def write(self, data: bytes) -> None:
        assert data, "an empty write"
        self.writes += 1

    def get_extra_info(self, name: str) -> object:
        return ("127.0.0.1", 50000) if name == "peername" else None

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass
