"""What is built: generation, training, compression."""
