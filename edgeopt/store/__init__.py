"""What outlives a build: the ledger of finished parts, the workspace folder, and the keys that name what is in them."""
