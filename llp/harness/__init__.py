"""EleutherAI's lm-evaluation-harness on this project's scoring windows. It needs the extra `llp[evaluate]`."""
