"""EleutherAI's lm-evaluation-harness on this project's scoring windows; needs the extra `evaluate`."""
