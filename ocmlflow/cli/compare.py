"""`ocmlflow compare`: compares models on the same validation chips."""

from ocmlflow.cli import arguments, console
from ocmlflow.pipeline.options import CompareOptions


def main(words: list[str] | None = None) -> None:
    """Run the command with these words, or with those of the process."""
    options = arguments.parse(CompareOptions, words, prog="ocmlflow compare")
    console.run(lambda: run(options))


def run(options: CompareOptions) -> None:
    """Run the step."""
    from ocmlflow.pipeline import compare  # heavy: --help does not wait for it

    compare.run(options)
