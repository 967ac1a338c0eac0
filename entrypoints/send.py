"""What trainings could not tell the tracking server when it was away: sent now."""

from __future__ import annotations

import argparse
import logging

from entrypoints import parser, start

log = logging.getLogger(__name__)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The verb's parameters and their defaults."""
    p = parser("send", "Send to MLFLOW_TRACKING_URI what runs of this user could not when it was away.")
    p.add_argument("--run", default=None, help="run id, to send only what that run left")
    return p.parse_args(words)


def main(args: argparse.Namespace) -> None:
    from ocmlflow.errors import InputError
    from ocmlflow.tracking import outbox, outbox_sender
    from ocmlflow.tracking.outbox import UndeliveredError

    root = outbox_sender.unsent_folder()
    folders = [folder for folder in outbox.left(root) if args.run in (None, folder.name)]
    if args.run and not folders:
        raise InputError(f"run {args.run} left nothing in {root}: all that it had to tell is sent")
    failed = []
    for folder in folders:
        try:
            outbox_sender.send(folder)
            log.info("run %s: all is sent", folder.name)
        except UndeliveredError as error:
            failed.append(f"run {folder.name}: {error}")
    if failed:
        raise InputError("; ".join(failed))
    log.info("%d runs had something left to send, in %s", len(folders), root)


if __name__ == "__main__":
    start(main, parse())
