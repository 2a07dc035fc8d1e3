"""Stores on disk: written shard by shard, read with NumPy alone."""
