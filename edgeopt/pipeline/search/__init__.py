"""The search: strategies return candidates, ``trial_runner`` makes and measures them, ``driver`` decides the order."""
