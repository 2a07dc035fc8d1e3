"""Data files to samples: readers, formats, personas, splits. Text only, no tokens."""
