"""Data: benchmarks and corpora, prompts, scores of answers, texts for feature distributions."""
