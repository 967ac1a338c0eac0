"""Draws a small synthetic data set in the layout of the Open Cities AI Challenge."""
