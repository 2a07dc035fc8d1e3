"""The steered sweep beside the naive loop, on a CPU and on a GPU."""
