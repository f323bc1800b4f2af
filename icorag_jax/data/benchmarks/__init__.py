"""Question answering benchmarks, from their public sources or from local folders."""
