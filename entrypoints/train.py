"""What MLproject runs for `train`."""

from ocmlflow.cli.train import main

if __name__ == "__main__":
    main()
