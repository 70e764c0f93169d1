"""Ranking of pairs: what is kept of each pair, and scores made of it."""
