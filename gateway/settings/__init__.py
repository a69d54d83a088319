"""The configuration: from YAML, overlays and environment to `Settings`, and from settings to the `View` that decides.

Reading order: `problems`, `document`, `shape` and `keys` (how a file is read), `loader` and `rules` (one gateway's
settings), `tenants` (the tenants file), `view` (what workers decide by), `difference` (what a reload would change).
"""
