"""What answers: the seam to an engine, the model that works everywhere, and any other checkpoint."""
