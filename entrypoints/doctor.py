"""`python -m entrypoints.doctor`, in a checkout."""

from ocmlflow.cli.doctor import main

if __name__ == "__main__":
    main()
