"""Concept directions: the token that attends to a concept's words, in each layer."""
