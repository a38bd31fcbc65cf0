"""The read cache: L1 in the process, L2 in Redis, both invalidated by tags."""
