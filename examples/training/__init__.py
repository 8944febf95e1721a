"""The common parts of the training programs. A program adds its settings, data, model and loss."""
