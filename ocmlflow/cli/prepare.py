"""`ocmlflow prepare`: cuts labelled scenes into training chips."""

from ocmlflow.cli import arguments, console
from ocmlflow.pipeline.options import PrepareOptions


def main(words: list[str] | None = None) -> None:
    """Run the command with these words, or with those of the process."""
    options = arguments.parse(PrepareOptions, words, prog="ocmlflow prepare")
    console.run(lambda: run(options))


def run(options: PrepareOptions) -> None:
    """Run the step."""
    from ocmlflow.pipeline import prepare  # heavy: --help does not wait for it

    prepare.run(options)
