"""What MLproject runs for `compare`."""

from ocmlflow.cli.compare import main

if __name__ == "__main__":
    main()
