"""`ocmlflow send`: sends what runs could not log while the tracking server was away."""

from ocmlflow.cli import arguments, console
from ocmlflow.pipeline.options import SendOptions


def main(words: list[str] | None = None) -> None:
    """Run the command with these words, or with those of the process."""
    options = arguments.parse(SendOptions, words, prog="ocmlflow send")
    console.run(lambda: run(options))


def run(options: SendOptions) -> None:
    """Send what all runs left, or the one named."""
    from ocmlflow.tracking import outbox_sender  # heavy: --help does not wait for it

    outbox_sender.send_unsent(options.run, name=options.name)
