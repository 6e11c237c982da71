"""How a weight lies in memory: one buffer, its low bits, the copies that matrix products read."""
