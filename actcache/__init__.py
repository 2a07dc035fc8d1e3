"""Cache a language model's residuals once; answer steering research's questions from the cache."""
