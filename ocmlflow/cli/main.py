"""`ocmlflow main`: runs prepare, train, evaluate and predict."""

from ocmlflow.cli import arguments, console
from ocmlflow.pipeline.options import MainOptions


def main(words: list[str] | None = None) -> None:
    """Run the command with these words, or with those of the process."""
    options = arguments.parse(MainOptions, words, prog="ocmlflow main")
    console.run(lambda: run(options))


def run(options: MainOptions) -> None:
    """Run the step."""
    from ocmlflow.pipeline import main  # heavy: --help does not wait for it

    main.run(options)
