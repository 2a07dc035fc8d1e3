"""Tables, verdicts and pictures of an analysis."""
