"""Low-rank factorization: a large layer becomes two small ones in a row, whose product is close to its weight."""
