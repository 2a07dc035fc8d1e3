"""Fit a direction in every layer: mean, PCA, ridge, logistic, LDA, RFM."""
