"""Translation with any method of the library: a Transformer on parallel text."""
