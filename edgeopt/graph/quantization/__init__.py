"""Integer variants of a float graph: how they are made, how much noise they add, and which nodes stay in float."""
