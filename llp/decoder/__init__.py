"""What all architectures share, in plain torch: attention patterns, layers, head and loss."""
