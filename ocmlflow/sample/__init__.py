"""Draws a small synthetic data set in the layout of the Open Cities AI Challenge.

`layout` plans a town, `render` draws it as a drone scene, and `catalog` writes scenes and footprints as STAC.
"""
