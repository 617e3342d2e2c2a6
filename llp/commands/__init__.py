"""The command line, one file per subcommand. Nothing else in `llp` knows about command lines."""
