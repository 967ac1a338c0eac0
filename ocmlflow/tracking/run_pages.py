"""Names runs, and gives the addresses of their pages and pictures on MLflow's web page."""

from ocmlflow.tracking import runs


def name_run(verb: str, detail: str) -> None:
    """Name the active run after its verb and a detail, unless the user gave it a name."""
    name = runs.active().info.run_name or ""
    if name == verb or runs.GENERATED_NAME.fullmatch(name):
        runs.set_tags({"mlflow.runName": f"{verb} {detail}"})


def picture_markdown(file: str) -> str:
    """Markdown that shows a picture among the artifacts of the active run, for its description."""
    return f"![{file}](get-artifact?path={file}&run_uuid={runs.active().info.run_id})"
