"""Networks of the ready tasks, with initial weights."""
