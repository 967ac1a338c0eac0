"""What MLproject runs for `predict`."""

from ocmlflow.cli.predict import main

if __name__ == "__main__":
    main()
