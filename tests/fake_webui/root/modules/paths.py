"""Where the WebUI keeps a person's things (``--data-dir``)."""

import os

data_path = os.environ["FAKE_WEBUI_DATA"]
