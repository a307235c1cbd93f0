"""AUTOMATIC1111's stable-diffusion-webui (v1.10.1). Line numbers in comments are of commit 82a973c0."""
