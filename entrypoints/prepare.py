"""What MLproject runs for `prepare`."""

from ocmlflow.cli.prepare import main

if __name__ == "__main__":
    main()
