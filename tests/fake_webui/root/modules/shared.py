"""What all modules of the WebUI share; ``sd_model`` is loaded when it is first asked for (shared_init.py)."""

import os
import types

from modules import options, paths, shared_state, shared_total_tqdm, styles
from modules.options import OptionInfo

_OPTIONS = {
    "sd_model_checkpoint": OptionInfo(None, "Stable Diffusion checkpoint"),
    "CLIP_stop_at_last_layers": OptionInfo(1, "Clip skip", infotext="Clip skip"),
    "comma_padding_backtrack": OptionInfo(20, "Prompt word wrap length limit"),
    "eta_noise_seed_delta": OptionInfo(0, "Eta noise seed delta", infotext="ENSD"),
    "localization": OptionInfo("None", "Localization"),
    "outdir_txt2img_samples": OptionInfo("outputs/txt2img-images", "Output directory for txt2img images"),
    "outdir_txt2img_grids": OptionInfo("outputs/txt2img-grids", "Output directory for txt2img grids"),
    "return_grid": OptionInfo(True, "Show grid in results for web"),
    "sd_lora": OptionInfo("None", "Add network to prompt"),
    "lora_in_memory_limit": OptionInfo(0, "Number of Lora networks to keep cached in memory"),
}

cmd_opts = types.SimpleNamespace(
    api=True,
    api_auth=None,
    cors_allow_origins=None,
    cors_allow_origins_regex=None,
    disable_extension_access=False,
    gradio_allowed_path=[],
    lora_dir=os.path.join(paths.data_path, "models", "Lora"),
    lowvram=False,
    medvram=False,
    no_prompt_history=False,
    nowebui=False,
)
opts = options.Options(dict(_OPTIONS), set())
prompt_styles = styles.StyleDatabase([])
state = shared_state.State()
total_tqdm = shared_total_tqdm.TotalTQDM()


def __getattr__(name):
    if name == "sd_model":
        from modules import sd_models

        return sd_models.model_data.get_sd_model()
    raise AttributeError(name)
