"""Definitions as plain loops, and the tests that hold everything else against them."""
