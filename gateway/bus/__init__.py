"""What the processes of one gateway say to each other: the bus, the supervisor's channel, the mapped counters."""
