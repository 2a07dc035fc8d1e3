"""The sweep over layers and multipliers, and the steerability it measures."""
