"""What the training programs share. A program adds its settings, data, model and loss."""
