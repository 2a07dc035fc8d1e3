"""Directions off the cache, and the layers and tokens they come from."""
