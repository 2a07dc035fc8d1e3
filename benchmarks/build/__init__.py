"""Builds beside plain forward passes and beside other tools."""
