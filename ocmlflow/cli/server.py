"""`ocmlflow server`: runs a tracking server for a team on this machine."""

from pathlib import Path

from ocmlflow.cli import arguments, console
from ocmlflow.pipeline.options import ServerOptions


def main(words: list[str] | None = None) -> None:
    """Run the command with these words, or with those of the process."""
    options = arguments.parse(ServerOptions, words, prog="ocmlflow server")
    console.run(lambda: run(options))


def run(options: ServerOptions) -> None:
    """Do what `options.action` says with the server in `options.folder`."""
    from ocmlflow.server import team_server  # heavy: --help does not wait for it

    folder, backup = Path(options.folder).resolve(), Path(options.backup).resolve()
    match options.action:
        case "up":
            url = team_server.up(
                folder,
                database=options.database,
                port=options.port,
                s3_port=options.s3_port,
                database_port=options.database_port,
                workers=options.workers,
                allowed_hosts=options.allowed_hosts,
            )
            print(f"MLflow is at {url}; its settings for this shell: set -a; . {folder}/client.env; set +a")
        case "down":
            team_server.down(folder)
        case "status":
            _show_status(folder)
        case "backup":
            team_server.backup(folder, backup)
        case "restore":
            team_server.restore(folder, backup)
        case "clean":
            team_server.clean(folder, older_than=options.older_than)
        case "upgrade":
            team_server.upgrade(folder)


def _show_status(folder: Path) -> None:
    """Print a line for each part; InputError if one does not answer."""
    from ocmlflow.errors import InputError
    from ocmlflow.server import team_server

    parts = team_server.status(folder)
    for part in parts:
        state = "answers" if part.answers else "does not answer" if part.process_id else "does not run"
        print(f"{part.name:<11} {state}{f', process {part.process_id}' if part.process_id else ''}")
    if silent := [part.name for part in parts if not part.answers]:
        raise InputError(f"{', '.join(silent)}: see the logs in {folder}; `ocmlflow server up` starts what is not up")
