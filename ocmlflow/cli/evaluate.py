"""`ocmlflow evaluate`: scores a model on held-out chips and promotes the best."""

from ocmlflow.cli import arguments, console
from ocmlflow.pipeline.options import EvaluateOptions


def main(words: list[str] | None = None) -> None:
    """Run the command with these words, or with those of the process."""
    options = arguments.parse(EvaluateOptions, words, prog="ocmlflow evaluate")
    console.run(lambda: run(options))


def run(options: EvaluateOptions) -> None:
    """Run the step."""
    from ocmlflow.pipeline import evaluate  # heavy: --help does not wait for it

    evaluate.run(options)
