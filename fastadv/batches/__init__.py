"""From examples to word pieces to packed batches, in a seeded order."""
