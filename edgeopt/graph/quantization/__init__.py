"""Integer forms of a float graph: how they are made, what they cost, and what is kept in float."""
