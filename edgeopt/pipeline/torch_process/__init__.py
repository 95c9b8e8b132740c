"""The processes that hold PyTorch: their jobs (``protocol``), the parent's side (``pool``) and theirs (``worker``)."""
