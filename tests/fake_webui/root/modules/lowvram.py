"""Parts of the model that are on the device only while they are used (lowvram.py)."""

from modules import devices

module_in_gpu = None


def send_everything_to_cpu():
    global module_in_gpu
    if module_in_gpu is not None:
        module_in_gpu.to(devices.cpu)
    module_in_gpu = None
