"""Scores for responses: from reward models, rankers, judges and the toy world's oracle, and pairs made of them."""
