"""Reads, writes, lists and caches files at local paths, https and s3 addresses.

`hrefs` handles all three, `s3` and `https` are the clients,
`json_files` reads JSON, and `range_cache` keeps parts of remote files on disk.
"""
