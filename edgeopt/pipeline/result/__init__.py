"""From a finished search to what its bundle says: the choice, and what is expected of the winner on other data."""
