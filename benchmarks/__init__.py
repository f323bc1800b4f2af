"""How fast training is, and what it takes; numbers are in docs/speed.md."""
