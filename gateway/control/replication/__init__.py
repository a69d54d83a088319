"""The replicated tenant map: one Redis a region, the function that writes there, and the process that follows peers."""
