"""Frozen language models: Flax Linen decoders of the Llama, Mistral, Qwen2 and Qwen3 families."""
