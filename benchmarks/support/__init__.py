"""What several benchmarks share: models and rows, measuring in turns, profiles, one stage alone."""
