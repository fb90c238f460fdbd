"""The algebra of objectives: parts, specs, and what they come to on a batch of tokens."""
