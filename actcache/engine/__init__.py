"""Tokens and a model to tensors: the forward pass, what is read in it, the exact sweep."""
