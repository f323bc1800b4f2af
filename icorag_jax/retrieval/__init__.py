"""Retrieval: BM25, dense and hybrid retrievers, and the frozen text encoders they embed with."""
