"""The data plane: one worker process. Callbacks on uvloop; nothing here waits for the control plane."""
