"""Reads scenes: STAC catalogues and GeoTIFFs to windows of RGB pixels, and where these show imagery."""
