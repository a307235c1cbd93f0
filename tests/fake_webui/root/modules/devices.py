import torch

cpu = device = torch.device("cpu")


def torch_gc():
    """Nothing to free here."""
