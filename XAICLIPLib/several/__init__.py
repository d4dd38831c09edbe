"""Several explanations of one scan, which share what is the same for all of them."""
