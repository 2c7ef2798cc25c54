"""Dask: the same block functions over many chunks, here or on a cluster."""
