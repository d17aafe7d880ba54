"""Language models behind one interface, and their checkpoints."""
