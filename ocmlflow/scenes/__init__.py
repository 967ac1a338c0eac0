"""Reads scenes: from STAC catalogues and GeoTIFFs to windows of RGB pixels with their validity.

`catalog` lists scenes, `raster` opens them and reads windows, `resample` reads windows at another resolution, `geobox`
knows where pixels lie on the ground, `geotiff` and `stac_writer` write results.
"""
