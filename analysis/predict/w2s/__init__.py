"""W2S: predict from a prompt which layer to steer at."""
