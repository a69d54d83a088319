"""The control plane: everything that finds out about the world and tells the workers. No request waits for it."""
