"""EleutherAI's lm-evaluation-harness on this project's scoring windows. It needs the extra `long-lora-perceiver[evaluate]`."""
