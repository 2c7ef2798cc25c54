"""Images, tables and transforms on disk: the only room that imports zarr, fsspec and pyarrow."""
