"""Before routing: who asks, for which tenant, and where that tenant lives."""
