"""`ocmlflow VERB` and `python -m ocmlflow VERB`: hands the words on to the command of that name."""

import importlib
import sys

import ocmlflow

VERBS = {
    "prepare": "cut labelled scenes into training chips",
    "train": "train a network on chips and register it",
    "evaluate": "score a model on held-out chips and promote the best",
    "compare": "compare models on the same validation chips",
    "protocol": "train and score models by a named protocol",
    "predict": "map the buildings of scenes",
    "main": "run prepare, train, evaluate and predict",
    "doctor": "check what the other commands depend on",
    "server": "run a tracking server for a team on this machine",
    "launch": "run a step on Kubernetes or Databricks",
    "send": "send what runs could not log while the server was away",
}


def main(words: list[str] | None = None) -> None:
    """Run the command that the first word names; the other words are its options."""
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["--version"]:
        print(ocmlflow.__version__)
    elif not words or words[0] in ("-h", "--help"):
        print(_usage())
    elif words[0] not in VERBS:
        print(f"{_usage()}\n\nocmlflow: error: there is no command {words[0]}", file=sys.stderr)
        sys.exit(2)
    else:
        importlib.import_module(f"ocmlflow.cli.{words[0]}").main(words[1:])


def _usage() -> str:
    commands = "\n".join(f"  {verb:<10} {about}" for verb, about in VERBS.items())
    return f"usage: ocmlflow COMMAND [--OPTION VALUE ...]\n\n{commands}\n\n`ocmlflow COMMAND --help` lists its options."


if __name__ == "__main__":
    main()
