"""Samples to tokens: rendering, marked spans, checks of rows, positions, token trees."""
