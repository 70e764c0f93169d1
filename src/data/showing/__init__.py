"""Prepared pairs made visible: which tokens there are, and what becomes of each."""
