"""Tasks on the documents of a text at hand, one YAML file each. They need no network."""
