"""Retrieval: frozen text encoders."""
