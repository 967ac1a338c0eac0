"""Runs a step on Kubernetes or Databricks."""
