"""`ocmlflow launch`: runs a step on Kubernetes or Databricks."""

from pathlib import Path

from ocmlflow.cli import arguments, console
from ocmlflow.pipeline.options import LaunchOptions


def main(words: list[str] | None = None) -> None:
    """Run the command with these words, or with those of the process."""
    options = arguments.parse(LaunchOptions, words, prog="ocmlflow launch")
    console.run(lambda: run(options))


def run(options: LaunchOptions) -> None:
    """Run the step, and print its log as it comes."""
    from ocmlflow.launch import launcher  # heavy: --help does not wait for it

    launcher.run(
        options.step,
        backend=options.backend,
        parameters=options.parameter,
        config=Path(options.config) if options.config else None,
        experiment=options.experiment,
        pending_minutes=options.pending_minutes,
        show=lambda line: print(line, flush=True),
    )
