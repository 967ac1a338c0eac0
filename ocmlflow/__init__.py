"""Buildings from drone and aerial imagery: chips, training, scores and maps, tracked in MLflow."""

__version__ = "0.1.0"
