"""Volume to class probabilities, by each network's own preprocessing, window and labels. Imports imaging and system."""
