"""Writes ``docs/options.md`` and its Chinese twin from the configuration: ``python -m tools.write_options``."""

from __future__ import annotations

from pathlib import Path

from lora_trainer.config.schema import Option, toml_value
from lora_trainer.config.train import options
from lora_trainer.core.i18n import Translate, translator

FOLDER = Path(__file__).parent.parent / "docs"
PAGES = {"en": "options.md", "zh": "options.zh-CN.md"}
_TITLES = {"en": "Options", "zh": "全部参数"}
_INTROS = {
    "en": "The same document is the form, the TOML file, the REST body and the run's `config.toml`. "
    "This page is written by `python -m tools.write_options`.",
    "zh": "表单、TOML 文件、REST 请求和训练记录里的 `config.toml` 都是同一份配置。"
    "本页由 `python -m tools.write_options` 生成。",
}
_HEADS = {
    "en": ("key", "title", "default", "range", "what it does"),
    "zh": ("键", "名称", "默认值", "范围", "说明"),
}


def page(language: str) -> str:
    """The page in one language."""
    t = translator(language)
    lines = [f"# {_TITLES[language]}", "", _INTROS[language]]
    section = None
    for item in options():
        head = item.path.rpartition(".")[0]
        if head != section:
            section = head
            heading = [f"## [{head}]", ""] if head else []
            lines += ["", *heading, f"| {' | '.join(_HEADS[language])} |", "|---|---|---|---|---|"]
        lines.append(_row(item, t))
    return "\n".join(lines) + "\n"


def _row(item: Option, t: Translate) -> str:
    unit = f" {t(item.unit)}" if item.unit else ""
    bounds = f"{_number(item.min)} – {_number(item.max)}{unit}" if item.min is not None else ""
    choices = ", ".join(f"`{choice}`" for choice in item.choices)
    cells = (
        f"`{item.path}`",
        t(item.title),
        f"`{toml_value(item.default)}`",
        choices or bounds,
        t(item.help).replace("|", "\\|").replace("<", "\\<"),
    )
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}" if abs(value) < 1e5 else f"{int(value):,}"


def main() -> None:
    """Write both pages."""
    FOLDER.mkdir(exist_ok=True)
    for language, name in PAGES.items():
        (FOLDER / name).write_text(page(language), encoding="utf-8")


if __name__ == "__main__":
    main()
