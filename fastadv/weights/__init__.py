"""How a weight lies in memory: one buffer, its compensation, and copies for matrix products."""
