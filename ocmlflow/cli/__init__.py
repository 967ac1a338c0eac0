"""The command line: reads words into option records and calls the stages of `pipeline`."""
