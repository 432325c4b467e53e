"""The command line, which parses, calls ``runs`` and prints."""
