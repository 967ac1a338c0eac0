"""Pooled IoU on places that training never saw: prepare, train and evaluate for each, through `mlflow run`.

    python -m benchmarks.accuracy --catalog CATALOG --places kam,ban --epochs 14

Prints a Markdown table. Minutes are those of the train run on this machine, reading and validation included.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import mlflow

ROOT = Path(__file__).parent.parent


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--catalog", required=True)
    p.add_argument("--places", required=True, help="each is held out in turn, separated by commas")
    p.add_argument("--epochs", type=int, required=True)
    p.add_argument("--train", default="", help="more parameters of train, name=value, separated by commas")
    p.add_argument("--work", type=Path, default=None, help="folder for the runs; a temporary one if not given")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = (args.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{work}/mlflow.db")
        rows = [row(place, args, work) for place in args.places.split(",")]
    print("\n| held out | all building | IoU at 0.50 | IoU, best threshold | precision | recall | training, minutes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))


def row(place: str, args: argparse.Namespace, work: Path) -> str:
    if mlflow.get_experiment_by_name(place) is None:
        mlflow.create_experiment(place, artifact_location=(work / "artifacts").as_uri())
    prepared = run("prepare", place, catalog=args.catalog, validation=place, work=work / "chips")
    more = dict(words.split("=") for words in args.train.split(",") if words)
    trained = run("train", place, epochs=args.epochs, name=place, **more)
    found = run("evaluate", place, model=f"models:/{place}@candidate").data.metrics
    minutes = (trained.info.end_time - trained.info.start_time) / 60_000
    figures = [prepared.data.metrics["validation/building_share"], found["iou_at_half"], found["iou"]]
    figures += [found["precision"], found["recall"]]
    return f"| {place} | " + " | ".join(f"{figure:.3f}" for figure in figures) + f" | {minutes:.0f} |"


def run(verb: str, experiment: str, **parameters: object) -> mlflow.entities.Run:
    words = [word for name, value in parameters.items() for word in ("-P", f"{name}={value}")]
    command = [sys.executable, "-m", "mlflow", "run", ".", "-e", verb, "--env-manager", "local"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    subprocess.run([*command, "--experiment-name", experiment, *words], cwd=ROOT, env=environment, check=True)
    return mlflow.search_runs(
        experiment_names=[experiment], filter_string=f"tags.`ocmlflow.verb` = '{verb}'", output_format="list"
    )[0]


if __name__ == "__main__":
    main()
