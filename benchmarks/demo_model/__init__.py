"""How the built-in demo model was trained and evaluated."""
