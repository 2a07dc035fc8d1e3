"""Stores and results as other formats, and back: HDF5, npz, safetensors, GGUF, archives."""
