"""What is trained: packed and padded encoder, heads, discriminator."""
