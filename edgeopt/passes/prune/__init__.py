"""Structured pruning: run the network once on labels instead of numbers, and cut what goes together.

In reading order: ``labels`` (what a label is), ``interpret`` (the run), ``rules/`` (one small function an operator),
``settle`` (how views of several dimensions shrink), ``analysis`` (groups of channels), ``importance`` (one score a
channel), ``rewrite`` and ``resize`` (the smaller graph), ``masked`` and ``proof`` (that it computes the same),
``table`` (what the search needs to know, without torch).
"""
