"""`python -m entrypoints.launch`, in a checkout."""

from ocmlflow.cli.launch import main

if __name__ == "__main__":
    main()
