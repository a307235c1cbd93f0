"""Scripts of txt2img and img2img: found in files, shown in lists, called around a picture (scripts.py)."""

import importlib.util
import os
from collections import namedtuple

from modules import shared

AlwaysVisible = object()
ScriptClassData = namedtuple("ScriptClassData", ["script_class", "path", "basedir", "module"])
scripts_data = []


class Script:
    name = None
    filename = None
    args_from = None
    args_to = None
    alwayson = False
    is_txt2img = False
    is_img2img = False
    group = None
    create_group = True

    def title(self):
        raise NotImplementedError

    def ui(self, is_img2img):
        pass

    def show(self, is_img2img):
        return True

    def run(self, p, *args):
        pass

    def before_process(self, p, *args):
        pass


def load_script(path):
    """A file's module has the file's name, with its ``.py`` (script_loading.py)."""
    spec = importlib.util.spec_from_file_location(os.path.basename(path), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    classes = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    own = [each for each in classes if issubclass(each, Script)]
    scripts_data.extend(ScriptClassData(each, str(path), os.path.dirname(path), module) for each in own)
    return module


class ScriptRunner:
    def __init__(self):
        self.scripts, self.selectable_scripts, self.alwayson_scripts, self.inputs = [], [], [], [None]

    def initialize_scripts(self, is_img2img):
        for data in scripts_data:
            script = data.script_class()
            script.filename, script.is_txt2img, script.is_img2img = data.path, not is_img2img, is_img2img
            shown = script.show(is_img2img)
            script.alwayson = shown is AlwaysVisible
            if shown:
                self.scripts.append(script)
                (self.alwayson_scripts if script.alwayson else self.selectable_scripts).append(script)

    def setup_ui(self):
        """The widgets of all scripts, those that are always on first; the first input is the list of scripts."""
        for script in (*self.alwayson_scripts, *self.selectable_scripts):
            script.args_from = len(self.inputs)
            self.inputs += script.ui(script.is_img2img) or []
            script.args_to = len(self.inputs)
        return self.inputs

    def run(self, p, *args):
        script = self.selectable_scripts[args[0] - 1]
        processed = script.run(p, *args[script.args_from : script.args_to])
        shared.total_tqdm.clear()
        return processed

    def before_process(self, p):
        for script in self.alwayson_scripts:
            script.before_process(p, *p.script_args[script.args_from : script.args_to])


scripts_txt2img = ScriptRunner()
scripts_img2img = ScriptRunner()
