"""The method: an evidence-use interface for frozen language models, and updates of it."""
