"""Statistics and predictors: cost beside reading alone and beside plain PyTorch."""
