"""Landbridge: a region-aware routing gateway. Start reading at ARCHITECTURE.md."""

__version__ = "0.1.0"
