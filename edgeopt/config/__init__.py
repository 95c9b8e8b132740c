"""Target profiles, the project's ``edgeopt.toml``, and the rules for which of them decides each limit."""
