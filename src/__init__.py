"""Marginalia: preference optimization in which every method is a row of parts."""
