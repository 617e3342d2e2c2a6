"""A trained model as a folder that other tools open: transformers, and what is built on it."""
