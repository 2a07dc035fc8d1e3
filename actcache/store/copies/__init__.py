"""Stores made of other stores: subset, merge, fill."""
