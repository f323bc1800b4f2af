"""Small backbones that come with the package, and how any backbone is loaded for answering.

A folder here is a backbone in the Hugging Face form with the wording that it knows
(`template.json`), and methods that were trained for it (`updater`, `shared`, `blind`, `feedback`),
each a folder of `icorag_jax.rag.storage.save_method`.
"""
