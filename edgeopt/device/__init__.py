"""Machines that run workers: this one, or a remote, emulated or browser device."""
