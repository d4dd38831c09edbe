"""What a perturbation costs the target: targets, baselines, scores, the incremental scorer. Imports segmentation."""
