"""Predicts scenes of any size, tile by tile, and writes COGs, footprints and STAC items."""
