"""`ocmlflow doctor`: says what is wrong with server, artifacts, S3, Keras, weights or disk, and how to mend it."""

from ocmlflow.cli import arguments, console
from ocmlflow.pipeline.options import DoctorOptions

LABELS = {"ok": "ok", "fault": "FAULT", "skipped": "-"}


def main(words: list[str] | None = None) -> None:
    """Run the command with these words, or with those of the process."""
    options = arguments.parse(DoctorOptions, words, prog="ocmlflow doctor")
    console.run(lambda: run(options))


def run(options: DoctorOptions) -> None:
    """Print a line for each check; InputError if one found a fault."""
    from ocmlflow.errors import InputError
    from ocmlflow.pipeline import diagnostics  # heavy: --help does not wait for it

    results = []
    for result in diagnostics.run_checks(options):
        results.append(result)
        print(f"{LABELS[result.state]:<6} {result.name}: {result.message}", flush=True)
    if faults := [result.name for result in results if result.state == "fault"]:
        raise InputError(f"{len(faults)} of {len(results)} checks found a fault: {', '.join(faults)}")
