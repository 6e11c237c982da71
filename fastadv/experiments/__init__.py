"""The paper's experiments: every language, with and without the adversary, over several seeds."""
