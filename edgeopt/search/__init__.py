"""What to try next, and the memory of what was tried."""
