"""Reading what a stranger wrote, without running it: configurations, expressions, weights, TorchScript."""
