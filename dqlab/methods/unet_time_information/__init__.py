"""Survey category 1.4: whether the network can still tell the time."""
