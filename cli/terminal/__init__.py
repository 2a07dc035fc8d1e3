"""What commands share: flags made from settings, what the terminal shows, a summary as tables."""
