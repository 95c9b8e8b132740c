"""What a graph holds and how much it computes: its weights in any number format, and its multiply-accumulates."""
