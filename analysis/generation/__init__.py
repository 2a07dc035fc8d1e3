"""Steered generation: methods as steerings, what their texts are worth, and the strength chosen."""
