"""What happens to training and its files when something goes wrong."""
