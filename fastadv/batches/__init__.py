"""Examples to word pieces to packed batches, in a seeded order."""
