"""What is learned, in how many steps."""
