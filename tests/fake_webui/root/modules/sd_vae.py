loaded_vae_file = None


def get_loaded_vae_name():
    return loaded_vae_file
