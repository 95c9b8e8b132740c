"""Structured pruning: run the network once on labels instead of numbers, and cut channels that go together.

In reading order: ``labels`` (their definition), ``interpret`` (the run), ``rules/`` (one small function per operator),
``couplings`` (how views of several dimensions shrink), ``analysis`` (groups of channels), ``importance`` (one score per
channel), ``rewrite`` and ``resize`` (the smaller graph), ``masked`` and ``proof`` (a check against the original),
``table`` (all that the search needs, without torch), ``lasso`` (a training that shrinks channels first).
"""
