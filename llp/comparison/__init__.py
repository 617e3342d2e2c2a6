"""Comparisons: which runs they need, how these are carried out and recorded, and what the records say."""
