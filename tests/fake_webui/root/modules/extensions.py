"""The extensions that are there (extensions.py:105)."""

extensions = []


class Extension:
    def __init__(self, name, path, enabled=True, is_builtin=False, metadata=None):
        self.name, self.path, self.enabled, self.is_builtin = name, path, enabled, is_builtin


def active():
    return [extension for extension in extensions if extension.enabled]
