"""What a graph needs before it is quantized: an operator set that is new enough, and inferred shapes."""
