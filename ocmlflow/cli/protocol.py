"""`ocmlflow protocol`: trains and scores models by a named protocol."""

from ocmlflow.cli import arguments, console
from ocmlflow.pipeline.options import ProtocolOptions


def main(words: list[str] | None = None) -> None:
    """Run the command with these words, or with those of the process."""
    options = arguments.parse(ProtocolOptions, words, prog="ocmlflow protocol")
    console.run(lambda: run(options))


def run(options: ProtocolOptions) -> None:
    """Run the protocol and print its table."""
    from ocmlflow.pipeline import protocol  # heavy: --help does not wait for it

    print(protocol.markdown(protocol.run(options)))
