"""Weights, and the log-probs of pairs under them."""
