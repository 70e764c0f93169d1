"""The toy world: a generated preference world with known truth (see docs/toy_world.md)."""
