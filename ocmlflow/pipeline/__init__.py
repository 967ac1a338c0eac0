"""The stages as functions: options in, records out. The command line, a notebook and a test call the same ones."""
