"""Comparisons and sweeps: which runs they need, how these are executed and recorded, and what the records say."""
