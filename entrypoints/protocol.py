"""What MLproject runs for `protocol`."""

from ocmlflow.cli.protocol import main

if __name__ == "__main__":
    main()
