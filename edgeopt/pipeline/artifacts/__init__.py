"""What a build makes and measures, each looked up in the ledger first: networks, files, scores, times."""
