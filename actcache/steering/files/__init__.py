"""Files of steerings: our own safetensors, and the control vectors of llama.cpp and repeng."""
