"""A model that the user gives: reading it whole, and finding what edgeopt cannot take before anything runs."""
