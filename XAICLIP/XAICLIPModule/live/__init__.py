"""What is alive in the scene: long work in turns, the map that develops, nodes that may have left."""
