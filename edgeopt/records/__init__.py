"""Values that every part of edgeopt passes on; import them from the module that has the subject's name."""
