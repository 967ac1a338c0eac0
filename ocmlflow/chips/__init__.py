"""Makes training chips: label rasters, splits by ground, Zarr stores and their GeoParquet index."""
