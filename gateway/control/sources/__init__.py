"""Where the tenant map comes from: one module per source, each of which brings it to the store."""
