from __future__ import annotations

import ast
import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_trainer.config.schema import field_error
from lora_trainer.config.train import options
from lora_trainer.core import i18n
from lora_trainer.core.errors import ConfigErrors, InputError, LoraTrainError, RunError, explain, explained
from lora_trainer.core.i18n import CATALOGUES, catalogue, translator
from lora_trainer.core.messages import OWN_WORDS, Message
from lora_trainer.dataset.images import PictureError
from lora_trainer.dataset.scan import Dataset
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.requests import DOCUMENTS, mix_options, tool_options
from lora_trainer.jobs.service import Jobs
from lora_trainer.model.contents import KINDS as FILES
from lora_trainer.model.contents import STARTS
from lora_trainer.runs.run import STATES
from lora_trainer.training.advice import Calculation
from lora_trainer.ui import standalone
from lora_trainer.ui.html import run as views
from lora_trainer.ui.tab import Tab
from lora_trainer.validation.grid.options import grid_options
from tests.helpers import ROOT

ENTRIES = {
    "Rank {rank} is high.": "秩 {rank} 偏高。",
    "{second} after {first}": "先 {first} 后 {second}",
    "The file has alpha {alpha:g}.": "文件的 alpha 是 {alpha:g}。",
    "The grid was stopped.": "网格已停止。",
    "{path}: expected {wanted}, not {value}.": "{path}：应为{wanted}，不能是 {value}。",
    "Causes: {half}a rate.": "原因：{half}学习率。",
    "a number": "数字",
    "too large,": "太大，",
}


@pytest.fixture(autouse=True)
def chinese(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "zh_CN.json"
    path.write_text(json.dumps(ENTRIES), encoding="utf-8")
    monkeypatch.setattr(i18n, "CATALOGUES", {"zh": path})
    catalogue.cache_clear()
    yield path
    catalogue.cache_clear()


@pytest.mark.parametrize(
    ("language", "text", "values", "sentence"),
    [
        ("zh", "Rank {rank} is high.", {"rank": 64}, "秩 64 偏高。"),
        ("zh", "{second} after {first}", {"first": 1, "second": 2}, "先 1 后 2"),
        ("zh", "Not known: {x}", {"x": 1}, "Not known: 1"),
        ("zh", "literal {braces}", {}, "literal {braces}"),
        ("en", "Rank {rank} is high.", {"rank": 64}, "Rank 64 is high."),
        ("fr", "The grid was stopped.", {}, "The grid was stopped."),
        ("zh", "--set {text}: no", {"text": "a=b"}, "--set a=b: no"),
        ("zh", "Causes: {half}a rate.", {"half": "too large, "}, "原因：太大，学习率。"),
        ("zh", "Causes: {half}a rate.", {"half": ""}, "原因：学习率。"),
        ("en", "Causes: {half}a rate.", {"half": "too large, "}, "Causes: too large, a rate."),
        ("zh", "It is {state}.", {"state": "a number"}, "It is 数字."),
        ("zh", "{found} of {wanted}", {"found": 1, "wanted": 2}, "1 of 2"),
    ],
)
def test_text_is_put_into_the_language(language: str, text: str, values: dict[str, object], sentence: str) -> None:
    assert translator(language)(text, **values) == sentence


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe"], ids=["missing", "cut off", "not UTF-8"])
def test_unreadable_catalogue_leaves_english_and_a_warning(
    chinese: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    chinese.unlink() if content is None else chinese.write_bytes(content)
    assert translator("zh")("The grid was stopped.") == "The grid was stopped."
    assert "cannot be read" in caplog.text


def test_values_of_a_person_are_not_translated() -> None:
    error = field_error("a number", "expected {wanted}, not {value}.", wanted="a number", value="a number")
    assert error.text(translator("zh")) == "a number：应为数字，不能是 a number。"
    kept = json.loads(json.dumps(explain(error)))
    assert explained(kept).text(translator("zh")) == "a number：应为数字，不能是 a number。"


def test_errors_speak_the_language() -> None:
    both = ConfigErrors([InputError("Rank {rank} is high.", rank=64), InputError("The grid was stopped.")])
    assert both.text(translator("zh")) == "秩 64 偏高。 网格已停止。"
    assert both.text(translator("en")) == str(both)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InputError("The file has alpha {alpha:g}.", alpha=0.5), "文件的 alpha 是 0.5。"),
        (InputError("Rank {rank} is high.", rank=64), "秩 64 偏高。"),
        (RunError("{path} is full.", path=Path("disk")), "disk is full."),
        (RunError("{text} is wrong.", text="x"), "x is wrong."),
    ],
)
def test_message_kept_in_a_manifest_speaks_the_language(error: LoraTrainError, sentence: str) -> None:
    kept = json.loads(json.dumps(explain(error)))
    assert kept["message"] == str(error)
    assert explained(kept).text(translator("zh")) == sentence


@pytest.mark.parametrize("manifest", [{}, {"message": None}, {"message": "", "error": None}])
def test_manifest_without_a_message_says_nothing(manifest: dict[str, object]) -> None:
    assert explained(manifest).text(translator("zh")) == ""


# ------------------------------------------------------------------ the shipped catalogue
SHIPPED = CATALOGUES["zh"]
READ_BY_HOST = ROOT / "localizations" / "zh_CN.json"
OPTIONS = [
    *options(),
    *mix_options(),
    *(option for kind in DOCUMENTS for option in tool_options(kind)),
    *grid_options().values(),
]
CHOICES = {choice for option in OPTIONS for choice in option.choices}
KINDS = {"SD2", "SD3", "SDXL", "SDXL refiner", "Flux", "Instruct-pix2pix", "DoRA"}
TERMS = CHOICES | KINDS | {"Alpha", "Dropout", "min-SNR γ", "LoRA Train"}
"""What Chinese makers of LoRAs write in English too; the choices are also what stands in a config file."""

TRANSLATING = {
    "t": 0,
    "_t": 0,
    "translate": 0,
    "_translate": 0,
    "step": 1,
    "_panel": 0,
    "answered": 1,
    "Message": 0,
    "remark": 0,
}
"""Calls that put an argument into the person's language, and which one."""


def error_names(trees: Iterable[ast.Module]) -> set[str]:
    """LoraTrainError and what is derived from it."""
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    names = {LoraTrainError.__name__}
    while more := {c.name for c in classes if names & {getattr(base, "id", "") for base in c.bases}} - names:
        names |= more
    return names


def called(node: ast.AST) -> str:
    function = getattr(node, "func", None)
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def literals(node: ast.expr | None) -> list[str]:
    if isinstance(node, ast.IfExp):
        return literals(node.body) + literals(node.orelse)
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def handed_over(tree: ast.Module, places: Mapping[str, int]) -> Iterator[str]:
    """Texts that are written where they are translated or raised, or stand in a table that is used there."""
    tables = {
        target.id: [text for value in statement.value.values for text in literals(value)]
        for statement in tree.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        place = places.get(called(call), len(call.args))
        for argument in call.args[place : place + 1]:
            yield from (("{path}: " if called(call) == "field_error" else "") + text for text in literals(argument))
            for name in ast.walk(argument):
                yield from tables.get(getattr(name, "id", ""), ())
        yield from (text for keyword in call.keywords if keyword.arg == "message" for text in literals(keyword.value))


def looped(function: ast.FunctionDef) -> Iterator[str]:
    """Texts of pairs and tuples that a loop in the function hands to the translator."""
    nodes = list(ast.walk(function))
    names = {getattr(node.args[0], "id", "") for node in nodes if isinstance(node, ast.Call) and called(node) == "t"}
    tuples = [node.elts for node in nodes if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load)]
    for loop in (node for node in nodes if isinstance(node, (ast.comprehension, ast.For))):
        if getattr(loop.target, "id", "") in names:
            yield from (text for entry in getattr(loop.iter, "elts", ()) for text in literals(entry))
        parts = getattr(loop.target, "elts", ())
        for place in (i for i, part in enumerate(parts) if getattr(part, "id", "") in names):
            yield from (text for entry in tuples if len(entry) == len(parts) for text in literals(entry[place]))


def answers(function: ast.FunctionDef) -> Iterator[str]:
    """What ``name_problem`` answers (a preset's name is checked by it too), ``reach_problem``, or another function."""
    returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
    for text in filter(None, (text for value in returned for text in literals(value))):
        if function.name == "name_problem":
            yield from (text, text.replace("name: ", "preset: "))
        elif function.name == "reach_problem":
            yield "{path}: " + text
    if function.name not in ("name_problem", "reach_problem"):
        yield from looped(function)


Functions = dict[str, list[ast.FunctionDef]]


def own_words(trees: Iterable[ast.Module], raising: Iterable[str]) -> Iterator[str]:
    """Words of ours that stand as values in sentences; without the spaces around them, as the catalogue has them."""
    functions: Functions = {}
    for function in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        functions.setdefault(function.name, []).append(function)
    for function in (function for namesakes in functions.values() for function in namesakes):
        for call in (node for node in ast.walk(function) if called(node) in raising):
            for keyword in (k for k in call.keywords if k.arg in OWN_WORDS):  # type: ignore[attr-defined]
                yield from (text.strip() for text in said(keyword.value, function, functions))


def said(node: ast.AST, function: ast.FunctionDef, functions: Functions) -> Iterator[str]:
    """Texts that an expression within the function may be: through its variables, tables, callees and callers."""
    parts: list[tuple[ast.AST, ast.FunctionDef]] = []
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=body, orelse=orelse):
            parts = [(body, function), (orelse, function)]
        case ast.Dict(values=values):
            parts = [(value, function) for value in values]
        case ast.Subscript(value=value) | ast.Call(func=ast.Attribute(value=value, attr="get")):
            parts = [(value, function)]
        case ast.Call(func=ast.Name(id=name)):
            callees = [(n, callee) for callee in functions.get(name, ()) for n in ast.walk(callee)]
            parts = [(n.value, callee) for n, callee in callees if isinstance(n, ast.Return) and n.value]
        case ast.Name(id=name):
            assignments = [n for n in ast.walk(function) if isinstance(n, ast.Assign)]
            parts = [(n.value, function) for n in assignments for t in n.targets if getattr(t, "id", "") == name]
            places = [place for place, argument in enumerate(function.args.args) if argument.arg == name]
            callers = [caller for namesakes in functions.values() for caller in namesakes] if places else []
            calls = [(n, c) for c in callers for n in ast.walk(c) if called(n) == function.name]
            parts += [(a, c) for n, c in calls for p in places for a in n.args[p : p + 1]]  # type: ignore[attr-defined]
    for part, within in parts:
        yield from said(part, within, functions)


def axis_labels() -> Iterator[str]:
    """Our axes in the WebUI's X/Y/Z plot script, which only the WebUI's script translates."""
    tree = ast.parse((ROOT / "lora_trainer" / "webui" / "xyz_axes.py").read_text(encoding="utf-8"))
    for statement in (node for node in tree.body if isinstance(node, ast.Assign)):
        values = getattr(statement.value, "elts", ())
        yield from (text for value in values for text in literals(value) if text.startswith("LoRA "))


@cache
def shown_texts() -> frozenset[str]:
    """Everything in the program that a person may read in their language."""
    texts = {text for option in OPTIONS for text in (option.title, option.help, option.unit, *option.choices)}
    sources = [*(ROOT / "lora_trainer").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sources]
    places = {**TRANSLATING, **dict.fromkeys(error_names(trees), 0), "field_error": 1}
    texts.update(own_words(trees, places), STATES, (kind for kind, _ in (*FILES, *STARTS)))
    for tree in trees:
        texts.update(handed_over(tree, places))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            texts.update(answers(function))
    return frozenset(texts - {""})


def shipped(path: Path = SHIPPED) -> dict[str, str]:
    return json.loads(path.read_text(encoding="utf-8"))


def placeholders(text: str) -> list[tuple[str, str, str | None]]:
    parts = string.Formatter().parse(text)
    return sorted((name, spec or "", conversion) for _, name, spec, conversion in parts if name is not None)


def test_every_text_is_in_the_catalogue() -> None:
    assert sorted(shown_texts() - TERMS - shipped().keys()) == []


def test_catalogue_has_nothing_that_is_not_shown() -> None:
    assert sorted(shipped().keys() - shown_texts()) == []


@pytest.mark.parametrize(
    "text",
    [
        "Picture folder",  # a title
        "minutes",  # a unit
        "Training run",  # a label of the tab
        "Run of the grid",  # one of the script in txt2img
        "What to train",  # a step
        "The checkpoint is loaded.",  # an answer
        "steps in all",  # a pair that a loop translates
        "validation loss",  # a head of a table
        "Waiting",  # a state
        "Encoding pictures",  # a phase
        "Paused for a picture or other work",
        "These settings look sound.",
        "There is no trigger word: the LoRA changes every picture. Right for a style only.",
        "{path}: {size} px is not a multiple of 8.",
        "{path} has more than {limit} megapixels; make it smaller.",
        "preset: “{name}” is a reserved name on Windows; choose another.",
        "The program ended while this run was going on; resume it.",
        "Who goes first",
        "fair",
        "The weights sum up to {total:g}; above {most:g} pictures tend to break, so lower them.",  # a notice
        "a whole number",  # a value in a sentence: from a table,
        "a list of texts",  # from a variable,
        "a VAE",  # from a table in another module,
        "Inpainting",  # from a callee
        "fp16 overflow (try bf16 or fp32),",
        "queued",
    ],
)
def test_every_kind_of_text_is_collected(text: str) -> None:
    assert text in shown_texts()


def test_templates_keep_their_placeholders() -> None:
    wrong = [text for text, chinese in shipped().items() if placeholders(text) != placeholders(chinese)]
    assert not wrong


def test_every_entry_is_translated() -> None:
    assert not [text for text, chinese in shipped().items() if not re.search("[\u4e00-\u9fff]", chinese)]
    assert not TERMS & shipped().keys()


def test_the_webui_reads_only_what_its_own_script_has_to_translate() -> None:
    """It puts every text of its whole page that equals an entry into our words (javascript/localization.js)."""
    assert [path.name for path in READ_BY_HOST.parent.iterdir()] == [READ_BY_HOST.name]
    assert list(shipped(READ_BY_HOST)) == sorted(axis_labels())
    assert all(re.search("[\u4e00-\u9fff]", chinese) for chinese in shipped(READ_BY_HOST).values())


def test_the_webui_keeps_its_own_words() -> None:
    """tests/host_words.txt has short texts of the page of v1.10.1, with a checkpoint and without other extensions."""
    words = (ROOT / "tests" / "host_words.txt").read_text(encoding="utf-8").splitlines()
    assert {"Resize", "Train", "Seed", "Sampler"} <= set(words)  # which are ours too, on our own part of the page
    assert set(words) & shipped(READ_BY_HOST).keys() == set()
    lower = {word.lower() for word in words}
    assert [text for text in shipped(READ_BY_HOST) if text.lower() in lower or len(text.split()) < 2] == []


@pytest.mark.parametrize("path", [SHIPPED, READ_BY_HOST], ids=["ours", "read by the WebUI"])
def test_entries_are_plain_text_in_order_and_without_doubles(path: Path) -> None:
    raw = path.read_bytes()
    pairs = json.loads(raw, object_pairs_hook=list)
    assert [key for key, count in Counter(key for key, _ in pairs).items() if count > 1] == []
    assert [key for key, _ in pairs] == sorted(key for key, _ in pairs)
    assert raw.decode("utf-8") == json.dumps(dict(pairs), ensure_ascii=False, indent=2) + "\n"
    assert not [
        text for pair in pairs for text in pair if text != text.strip()
    ]  # own words and the WebUI's are compared trimmed


@pytest.fixture
def language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(i18n, "CATALOGUES", CATALOGUES)
    catalogue.cache_clear()


def is_english(text: object) -> bool:
    bare = re.sub(r"\(.*\)", "", str(text)).strip()
    return bool(re.search("[A-Za-z]{2}", bare)) and not re.search("[\u4e00-\u9fff]", bare) and bare not in TERMS


@pytest.mark.usefixtures("language")
def test_chinese_page_has_no_english_label(tmp_path: Path) -> None:
    page = standalone.page(Jobs(StandaloneHost(tmp_path, language="zh")))
    props = [c["props"] for c in page.config["components"] if c["props"].get("elem_id") != "lora_train_poll"]
    shown = [p.get(key) for p in props for key in ("label", "info")]
    shown += [c.value for c in page.blocks.values() if c.get_block_name() == "button" and c.value != "poll"]
    assert len([text for text in shown if text]) > 100
    assert [text for text in shown if text and is_english(text)] == []


MANIFEST: dict[str, Any] = {
    "name": "zorp",
    "state": "running",
    "phase": "training",
    "message": None,
    "step": 2,
    "steps": 9,
    "epoch": 1,
    "epochs": 3,
    "seconds": 5,
    "seconds_left": 7.0,
    "steps_per_second": 0.5,
    "loss_average": 0.1,
    "lr": {"unet": 1e-4, "text": 5e-6},
    "validation": {"last": 0.2, "base": 0.3},
    "files": [{"path": "zorp.safetensors", "epoch": 1, "step": 2, "metrics": {"validation": 0.2, "loss": 0.1}}],
}


def test_views_hand_over_nothing_that_is_not_collected(tmp_path: Path) -> None:
    asked: set[str] = set()

    def record(text: str, **values: object) -> str:
        asked.add(text)
        return text.format(**values) if values else text

    for state in ("running", "paused", "failed", "queued"):
        views.status_card(MANIFEST | {"state": state, "waits": "checkpoint"}, 2, record)
    views.status_card(MANIFEST | {"waiting": True, "steps_per_second": 2.0}, 0, record)
    views.curves([{"step": 1, "loss": 0.5, "lr": MANIFEST["lr"]}, {"step": 2, "validation": 0.4}], MANIFEST, record)
    views.files_table(MANIFEST, "zorp", record)
    views.grid_status({"state": "running", "done": 1, "of": 2, "phase": "losses", "seconds_left": 5}, record)
    views.grid_status({"state": "queued", "done": 0, "of": 2}, record)
    views.advice_list([Message("There is no preset named {name}.", {"name": 1}, field="network.rank")], None, record)
    views.advice_list([], Calculation(1, 1, 1, 1, 1, 1), record)
    problem = PictureError("{path} has more than {limit} megapixels; make it smaller.", path="a.png", limit=100)
    views.dataset_report(Dataset(tmp_path, [], [problem], [tmp_path], [tmp_path]), record)
    views.base_model({"checkpoint": {"name": "a", "sha256": "b", "family": "SD1"}}, record)
    assert len(asked) > 40
    assert asked - {""} <= shown_texts()


def test_what_is_wrong_with_pictures_and_checkpoint_is_said_in_chinese(tmp_path: Path) -> None:
    t = translator("zh")
    problem = PictureError("Rank {rank} is high.", rank=64)
    assert "秩 64 偏高。" in views.dataset_report(Dataset(tmp_path, [], [problem]), t)
    item = SimpleNamespace(path=tmp_path / "none.png")
    assert "none.png" in views._thumbnail(item, t)  # type: ignore[arg-type]
    assert "网格已停止。" in views.base_model({"checkpoint": {}, "problem": "The grid was stopped."}, t)


@pytest.mark.usefixtures("language")
def test_missing_checkpoint_is_said_in_chinese(tmp_path: Path) -> None:
    host = StandaloneHost(tmp_path, str(tmp_path / "none.safetensors"), "zh")
    base = Tab(Jobs(host)).watch.show(None, {})[0]
    assert "none.safetensors 不存在" in base
