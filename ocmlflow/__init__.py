"""Buildings from drone and aerial imagery: training chips, models, scores and maps, tracked in MLflow.

    import ocmlflow

    chips = ocmlflow.prepare("catalog.json", validation="kam")
    model = ocmlflow.train(chips, epochs=30)
    scores = ocmlflow.evaluate(model)
    maps = ocmlflow.predict("scenes/", "out")

Each function does what the command of its name does, in a run of MLflow, and takes the same options.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # loaded when first used: MLflow and rasterio take seconds
    from ocmlflow.pipeline.api import compare, evaluate, load_model, predict, predict_array, prepare, train

__version__ = "0.1.0"
__all__ = ["compare", "evaluate", "load_model", "predict", "predict_array", "prepare", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ocmlflow' has no attribute '{name}'")
    from ocmlflow.pipeline import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
