"""Reads, writes, lists and caches files at local paths, https and s3 addresses.

`hrefs` handles all three, `s3` is the client for S3, and `range_cache` keeps parts of remote files on disk.
"""
