"""Runs of steered generation: rows and models before, the stage itself, conversations."""
