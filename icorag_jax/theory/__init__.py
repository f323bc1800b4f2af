"""The exact regime and its boundary: objective, constructions, architectures, features."""
