"""What makes files of this repository: the small checkpoint, the pages of options."""
