"""Works with MLflow: runs, artifacts, the model registry.

With `launch.remote_runs` the only place that imports mlflow.
"""
