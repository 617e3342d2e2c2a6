"""Fused attention kernels and what is built on them; each is tested equal to its definition."""
