"""The report that one opens in a browser: one file, no network."""
