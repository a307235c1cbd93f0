"""Which file, at which weight: grids of pictures and numbers."""
