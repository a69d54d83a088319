"""DNS discovery: what endpoints written `dns://` and `srv://` stand for, now or at least when it was last known."""
