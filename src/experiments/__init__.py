"""The grids behind the papers' tables: what they say, what they run, and what came of it."""
