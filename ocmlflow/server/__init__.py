"""Runs a tracking server for a team on one machine: MLflow, PostgreSQL and an S3 server."""
