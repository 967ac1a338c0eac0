"""`ocmlflow predict`: maps the buildings of scenes."""

from ocmlflow.cli import arguments, console
from ocmlflow.pipeline.options import PredictOptions


def main(words: list[str] | None = None) -> None:
    """Run the command with these words, or with those of the process."""
    options = arguments.parse(PredictOptions, words, prog="ocmlflow predict")
    console.run(lambda: run(options))


def run(options: PredictOptions) -> None:
    """Run the step."""
    from ocmlflow.pipeline import predict  # heavy: --help does not wait for it

    predict.run(options)
