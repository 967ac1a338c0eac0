"""`python -m entrypoints.send`, in a checkout."""

from ocmlflow.cli.send import main

if __name__ == "__main__":
    main()
