"""Logs scenes as input data of the active run."""

from collections.abc import Sequence

import pandas as pd

from ocmlflow.redaction import redact
from ocmlflow.scenes.catalog import Scene
from ocmlflow.storage import hrefs
from ocmlflow.tracking import run_artifacts
from ocmlflow.tracking.registry import Model


def log_scenes(scenes: Sequence[Scene], source: str, *, context: str, models: Sequence[Model] = ()) -> None:
    """Log scenes as input data of the active run, named after their places, and the models that see them."""
    table = pd.DataFrame([{"scene": scene.id, "image": redact(scene.image)} for scene in scenes])
    places = " ".join(sorted({scene.place for scene in scenes} - {""}))
    run_artifacts.log_input(
        table,
        f"scenes {places}".strip(),
        source=redact(hrefs.absolute(source)),
        digest=hrefs.digest(table.to_csv(index=False)),
        context=context,
        models=[model.key for model in models],
    )
