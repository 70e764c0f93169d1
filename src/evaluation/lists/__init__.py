"""Listwise evaluation: all responses to a prompt ranked by a reward, against their scores."""
