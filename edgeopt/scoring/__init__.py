"""Scores: what outputs and labels are, the score of each sample and of a set, and how far these can be trusted."""
