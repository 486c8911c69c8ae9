"""What makes it so: loops without input."""
