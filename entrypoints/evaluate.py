"""What MLproject runs for `evaluate`."""

from ocmlflow.cli.evaluate import main

if __name__ == "__main__":
    main()
