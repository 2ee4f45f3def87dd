"""The hot operations, each file with its reference beside its fast forms."""
