"""How weights are stored in a file."""
