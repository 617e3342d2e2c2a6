"""The version of the package, whether it is installed or run from its source."""

__version__ = "0.2.0"
