"""What MLproject runs for `main`."""

from ocmlflow.cli.main import main

if __name__ == "__main__":
    main()
