"""Target profiles, the project's ``edgeopt.toml``, and which of them decides each limit."""
