"""`ocmlflow train`: trains a network on chips and registers it."""

from ocmlflow.cli import arguments, console
from ocmlflow.pipeline.options import TrainOptions


def main(words: list[str] | None = None) -> None:
    """Run the command with these words, or with those of the process."""
    options = arguments.parse(TrainOptions, words, prog="ocmlflow train")
    console.run(lambda: run(options))


def run(options: TrainOptions) -> None:
    """Run the step."""
    from ocmlflow.pipeline import train  # heavy: --help does not wait for it

    train.run(options)
