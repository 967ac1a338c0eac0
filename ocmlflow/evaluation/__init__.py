"""Scores pixels and buildings, calibrates probabilities, and writes the report."""
