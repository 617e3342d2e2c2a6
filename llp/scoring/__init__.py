"""How a text is scored: windows, and metrics that sum losses. Nothing here depends on a model."""
