"""Reads, writes, lists and caches files at paths, https and s3 addresses."""
