"""The processes that hold PyTorch: what the parent asks (``protocol``), who asks (``pool``), who answers (``worker``)."""
