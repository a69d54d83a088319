"""On the way back: fields of our own, and the log."""
