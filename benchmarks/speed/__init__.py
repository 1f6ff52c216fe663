"""How fast it is; what is compared is measured in turn, in one run."""
