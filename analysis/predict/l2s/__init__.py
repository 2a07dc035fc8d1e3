"""L2S: predict from a prompt the vector to steer with."""
