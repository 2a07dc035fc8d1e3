"""The store beside raw files, np.memmap and other formats."""
