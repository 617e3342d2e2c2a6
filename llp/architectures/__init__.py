"""One file per architecture: which positions attend to which, layer by layer."""
