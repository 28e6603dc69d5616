"""Stage 1: a recipe becomes a plan, a plan becomes an image in the store."""
