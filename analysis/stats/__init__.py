"""Statistics over rows: moments, bootstrap, slopes, principal components."""
