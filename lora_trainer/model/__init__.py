"""What is known of the model: its family, its view as diffusers modules, its text conditioning."""
