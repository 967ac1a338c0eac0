"""`python -m entrypoints.server`, in a checkout."""

from ocmlflow.cli.server import main

if __name__ == "__main__":
    main()
