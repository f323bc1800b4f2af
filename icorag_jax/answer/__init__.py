"""A question answered from passages by a frozen model, before and after its update.

`python -m icorag_jax.answer --help` is the command; `asking.ask` is what it calls.
"""
