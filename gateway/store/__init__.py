"""The tenant map on disk: one writer (control), any number of readers that never wait for it (workers, CLI)."""
