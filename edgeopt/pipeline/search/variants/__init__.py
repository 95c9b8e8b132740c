"""Which further files of a network are made: mixed precision, few bits, training for int8, float fallbacks."""
