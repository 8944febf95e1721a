"""Image classification with any method of the library, on the papers' models and data."""
