"""Data: texts for feature distributions."""
