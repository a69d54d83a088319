"""Where the tenant map comes from: one module per source, each of which hands a whole map to the store."""
