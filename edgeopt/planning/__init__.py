"""Pure rules of the search: which sizes to try, how many channels each group keeps, which layers to factorize."""
