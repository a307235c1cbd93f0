def stop_program():
    """Ends the process on the spot (restart.py:24); here the tests go on."""
    stopped.append(True)


stopped = []
