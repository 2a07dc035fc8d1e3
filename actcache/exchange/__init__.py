"""Stores and results as other formats, and back: HDF5, npz, safetensors, GGUF, archives."""

from actcache.exchange.formats import FORMATS, VALUES, export, import_store

__all__ = ["FORMATS", "VALUES", "export", "import_store"]
