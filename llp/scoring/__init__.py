"""How a text is scored: its windows, and the metrics that sum up the losses. Nothing here knows a model."""
