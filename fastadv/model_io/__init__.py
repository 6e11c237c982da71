"""Models from and to disk: hub, folder, Python package."""
