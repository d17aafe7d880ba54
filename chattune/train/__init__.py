"""Training: the loop, its state, and the levers. Entry: `stage.train`."""
