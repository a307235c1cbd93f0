def visible_sampler_names():
    return ["Euler a", "Euler", "DDIM"]
