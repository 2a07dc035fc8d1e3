"""Benchmarks of steered generation."""
