"""Checkpoints: how they are written, opened and checked."""
