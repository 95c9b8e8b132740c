"""Low rank: a large layer becomes two small ones in a row, whose product is nearly its weight."""
