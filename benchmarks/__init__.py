"""Speed and memory of the trainer, as ratios against sd-scripts in the same run. See README.md."""
