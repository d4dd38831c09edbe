"""Volume to class probabilities, with each network's own preprocessing, sliding window and labels."""
