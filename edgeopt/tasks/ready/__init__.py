"""Tasks that a name is enough for, and the data that they read."""
