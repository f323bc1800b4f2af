"""Retrieval-augmented generation as in-context optimization, in JAX and Flax.

Subpackages, in the order of the paper:

* `icorag_jax.theory`: the exact regime and its boundary.
* `icorag_jax.retrieval`: frozen text encoders.
* `icorag_jax.data`: texts and question-answering data.
"""
