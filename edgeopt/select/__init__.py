"""Trials and a budget go in, a ``Choice`` comes out: the smallest file that keeps every limit. Nothing is run here."""

from edgeopt.select.decision import choose

__all__ = ["choose"]
