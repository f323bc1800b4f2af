"""Retrieval-augmented generation as in-context optimization, in JAX and Flax.

Subpackages, in the order of the paper:

* `icorag_jax.theory`: the exact regime and its boundary.
* `icorag_jax.lm`: frozen language models that read evidence through an interface.
* `icorag_jax.data`: question answering benchmarks, a generated world, prompts and scores.
* `icorag_jax.retrieval`: retrievers and frozen text encoders.
"""
