"""The diffusion's own mathematics: noise, conditioning, prediction and loss; no files, no runs."""
