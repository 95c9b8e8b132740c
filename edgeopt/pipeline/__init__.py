"""The order of a build, and the only package that imports all others.

Start with ``build.py``: it opens everything, runs the search (``search/driver.py``), decides, and writes the bundle.
"""
