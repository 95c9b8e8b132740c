"""The values that the parts of edgeopt exchange; import each from the module named after its subject."""
