"""Shares of limits: among this gateway's workers over the bus, and among a region's gateways in its Redis."""
