from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from lora_trainer.config.schema import Option, parse_toml
from lora_trainer.config.train import DataConfig, TrainConfig, bucket_bounds, json_schema, name_problem, options
from lora_trainer.core.errors import ConfigErrors, InputError
from tests.helpers import config

jsonschema = pytest.importorskip("jsonschema")
OPTIONS = options()
NUMBERS = [o for o in OPTIONS if o.type in (int, float)]

# ------------------------------------------------------------------ documents
TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc",)) | st.sampled_from("\n\t\r\x7f\"'\\#{}"), max_size=20
)
ARGUMENT = st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
WELL_BEHAVED: dict[str, st.SearchStrategy[Any]] = {  # what rules between fields would often refuse
    "data.bucket_step": st.sampled_from([8, 16, 32, 64]),
    "data.bucket_min": st.just(0),
    "data.bucket_max": st.just(0),
    "training.optimizer": st.sampled_from(["AdamW", "Lion"]),
    "samples.width": st.integers(0, 256).map(lambda n: n * 8),
    "samples.height": st.integers(0, 256).map(lambda n: n * 8),
}


def values_of(item: Option) -> st.SearchStrategy[Any]:
    if item.path in WELL_BEHAVED:
        return WELL_BEHAVED[item.path]
    if item.choices:
        return st.sampled_from(item.choices)
    if item.type is int:
        return st.integers(int(item.min or 0), int(item.max or 0))
    if item.type is float:
        return st.floats(item.min, item.max) | st.integers(int(item.min or 0) + 1, max(int(item.max or 0), 1)).filter(
            lambda n: n <= (item.max or 0)
        )
    if item.type is bool:
        return st.booleans()
    if item.type is str:
        return TEXT
    return (
        st.lists(TEXT, max_size=3)
        if "list" in str(item.type)
        else st.dictionaries(TEXT, ARGUMENT | st.lists(ARGUMENT, max_size=3), max_size=3)
    )


def documents() -> st.SearchStrategy[dict[str, Any]]:
    sections: dict[str, dict[str, st.SearchStrategy[Any]]] = {}
    for item in OPTIONS:
        section, _, name = item.path.rpartition(".")
        if item.path != "name":
            sections.setdefault(section, {})[name] = values_of(item)
    top = sections.pop("")
    return st.fixed_dictionaries(
        {"name": st.sampled_from(["a", "hanfu_girl", "汉服 女孩", "v1.5-final"])},
        optional={**top, **{name: st.fixed_dictionaries({}, optional=parts) for name, parts in sections.items()}},
    )


@given(documents())
def test_accepted_document_survives_toml_json_and_a_file(document: dict[str, Any]) -> None:
    try:
        accepted = TrainConfig.from_dict(document)
    except ConfigErrors:
        reject()
    toml = accepted.to_toml().encode("utf-8").decode("utf-8")
    assert TrainConfig.from_dict(parse_toml(toml)) == accepted
    assert TrainConfig.from_dict(json.loads(json.dumps(accepted.to_dict()))) == accepted
    jsonschema.validate(accepted.to_dict(), json_schema())


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from([10**400, "\ud800", "\x00", "汉", "..", "AdamW", float("nan")])
)
GARBAGE = st.recursive(
    PLAIN,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=8), part, max_size=3),
    max_leaves=6,
)
SECTIONS = sorted({o.path.partition(".")[0] for o in OPTIONS})
FIELDS = sorted({o.path.rpartition(".")[2] for o in OPTIONS})
NEARLY = st.dictionaries(
    st.sampled_from(SECTIONS), GARBAGE | st.dictionaries(st.sampled_from(FIELDS), GARBAGE, max_size=4), max_size=4
)


def outcome(document: Any) -> TrainConfig | InputError:
    try:
        return TrainConfig.from_dict(document)
    except InputError as error:
        return error


@given(GARBAGE | NEARLY)
def test_garbage_gives_a_configuration_or_a_sentence(document: Any) -> None:
    result = outcome(document)
    assert (result.to_toml() if isinstance(result, TrainConfig) else str(result)).encode("utf-8")


@pytest.mark.parametrize("kind", ["rank", "alpha", "dropout"])
def test_number_of_thousands_of_digits_is_a_sentence(kind: str) -> None:
    document = parse_toml(f"name = 'a'\nnetwork.{kind} = 0x{'f' * 5000}")
    assert "expected a" in str(outcome(document))


@pytest.mark.parametrize("kind", ["rank", "targets"])
def test_deeply_nested_value_is_a_sentence(kind: str) -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    error = outcome({"name": "a", "network": {kind: value}, "training": {"optimizer_args": {"a": value}}})
    assert "not a list" in str(error)


@pytest.mark.parametrize("document", [None, 3, "name", [], ["name"], [{"name": "a"}]])
def test_document_that_is_no_table_is_said(document: Any) -> None:
    with pytest.raises(ConfigErrors, match=r"^config: expected a section with fields\.$"):
        TrainConfig.from_dict(document)


# ------------------------------------------------------------------ one field
def nested(path: str, value: Any) -> dict[str, Any]:
    section, _, name = path.rpartition(".")
    return {"name": "a"} | ({section: {name: value}} if section else {name: value})


def only_error(document: Mapping[str, Any]) -> InputError:
    with pytest.raises(ConfigErrors) as caught:
        TrainConfig.from_dict(document)
    assert len(caught.value.errors) == 1
    return caught.value.errors[0]


@pytest.mark.parametrize("item", NUMBERS, ids=lambda o: o.path)
def test_every_number_is_held_within_its_bounds(item: Option) -> None:
    assert item.min is not None
    assert item.max is not None
    for value in (item.min - 1, item.max + 1):
        error = only_error(nested(item.path, value))
        assert error.field == item.path
        assert str(error).startswith(f"{item.path}: ")
        assert "is out of range; use" in str(error)


@pytest.mark.parametrize("item", [o for o in OPTIONS if o.choices], ids=lambda o: o.path)
def test_every_choice_is_held_to_its_list(item: Option) -> None:
    error = only_error(nested(item.path, "nonsense"))
    assert error.field == item.path
    assert all(choice in str(error) for choice in item.choices)


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("network.rank", "8", "a whole number"),
        ("network.rank", 8.5, "a whole number"),
        ("network.rank", True, "a whole number"),
        ("network.rank", float("nan"), "a whole number"),
        ("network.rank", 10**400, "a whole number"),
        ("training.unet_lr", "1e-4", "a number"),
        ("training.unet_lr", float("inf"), "a number"),
        ("training.unet_lr", 10**400, "a number"),
        ("data.shuffle", 1, "true or false"),
        ("data.trigger", 5, "a text"),
        ("samples.prompts", "one", "a list of texts"),
        ("samples.prompts", ["one", 2], "a list of texts"),
        ("training.optimizer_args", ["a"], "a table of values"),
        ("training.optimizer_args", {"a": None}, "is not a number, a text, true, false or a list of these"),
        ("training.optimizer_args", {"a": {"b": 1}}, "is not a number, a text, true, false or a list of these"),
        ("data.trigger", "a\x00b", "control characters"),
        ("data.trigger", "x" * 10_001, "longer than 10000"),
        ("data.trigger", "\ud800", "not Unicode"),
        ("network", 3, "expected a section with fields"),
    ],
)
def test_wrong_value_is_said_with_its_field(path: str, value: Any, wanted: str) -> None:
    error = only_error(nested(path, value))
    assert error.field == path
    assert str(error).startswith(f"{path}: ")
    assert wanted in str(error)


def test_whole_numbers_may_be_written_as_floats_and_the_other_way_round() -> None:
    read = TrainConfig.from_dict({"name": "a", "network": {"rank": 8.0, "alpha": 4}})
    assert (read.network.rank, read.network.alpha) == (8, 4.0)
    assert isinstance(read.network.rank, int)
    assert isinstance(read.network.alpha, float)


@pytest.mark.parametrize(
    ("document", "field", "suggestion"),
    [
        ({"trainig": {}}, "trainig", "training"),
        ({"network": {"rnak": 8}}, "network.rnak", "network.rank"),
        ({"training": {"learning_rate": 1}}, "training.learning_rate", ""),
        ({"zzzzzz": 1}, "zzzzzz", ""),
    ],
)
def test_unknown_field_is_refused_with_the_nearest_name(document: dict[str, Any], field: str, suggestion: str) -> None:
    error = only_error({"name": "a", **document})
    assert error.field == field
    assert "there is no such field" in str(error)
    if suggestion:
        assert f"did you mean {suggestion}?" in str(error)


def test_all_mistakes_are_said_at_once() -> None:
    with pytest.raises(ConfigErrors) as caught:
        TrainConfig.from_dict({"name": "a", "network": {"rank": 0, "alhpa": 1}, "data": {"flip": "yes"}})
    assert [e.field for e in caught.value.errors] == ["network.rank", "network.alhpa", "data.flip"]


# ------------------------------------------------------------------ rules between fields
@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"training.unet_lr": 0, "training.text_lr": 0}, "training.unet_lr"),
        ({"training.optimizer": "Prodigy", "training.unet_lr": 1, "training.text_lr": 0.5}, "training.text_lr"),
        ({"training.steps": 10, "training.warmup": 11}, "training.warmup"),
        ({"data.bucket_step": 12}, "data.bucket_step"),
        ({"data.resolution": 64, "data.bucket_step": 128}, "data.bucket_step"),
        ({"data.bucket_min": 1024, "data.bucket_max": 512}, "data.bucket_min"),
        ({"samples.width": 100}, "samples.width"),
        ({"samples.height": 12}, "samples.height"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        TrainConfig(name="a").with_values(values)
    assert field in [e.field for e in caught.value.errors]


@pytest.mark.parametrize(
    "values",
    [
        {"training.optimizer": "Prodigy", "training.unet_lr": 1, "training.text_lr": 1},
        {"training.optimizer": "Prodigy", "training.unet_lr": 1, "training.text_lr": 0},
        {"training.unet_lr": 0},
        {"training.steps": 10, "training.warmup": 10},
        {"training.steps": 0, "training.warmup": 500},
        {"data.resolution": 64, "data.bucket_step": 64},
    ],
)
def test_fields_that_fit_each_other_are_taken(values: dict[str, Any]) -> None:
    TrainConfig(name="a").with_values(values)


@pytest.mark.parametrize(
    ("data", "bounds"),
    [
        (DataConfig(), (256, 1024)),
        (DataConfig(bucket_min=300, bucket_max=700), (256, 640)),
        (DataConfig(resolution=64), (64, 128)),
        (DataConfig(resolution=96, bucket_step=64), (64, 192)),
    ],
)
def test_bucket_bounds_are_multiples_of_the_step(data: DataConfig, bounds: tuple[int, int]) -> None:
    assert bucket_bounds(data) == bounds


# ------------------------------------------------------------------ names
@pytest.mark.parametrize(
    "name",
    [
        *[
            "",
            ".",
            "..",
            "../a",
            "a/b",
            "a\\b",
            "/etc/passwd",
            "C:\\a",
            "a\x00",
            ".hidden",
            " a",
            "a ",
            "a.",
            "a\n",
            "a\tb",
        ],
        *["a:0.8", 'a"b', "a|b", "a?b", "a*b", "a<b", "a>b", "a,b"],
        *[
            "a\u202egnp",
            "a\u200bb",
            "\ufeffcat",
            "a\u2066b",
            "a\x7fb",
            "a\x85b",
            "a\u2028b",
            "a\ue000b",
            "a\u3164b",
            "a\ufe0f",
        ],
        *["-cat", "--help", "CONIN$", "conout$.x", "COM¹", "lpt³.a", "com0", "a\ud800"],
        *["con", "CON", "nul.txt", "Lpt1", "com9.tar.gz", "aux", "x" * 101, "汉" * 67],
    ],
)
def test_names_that_cannot_be_files_are_refused(name: str) -> None:
    assert name_problem(name).startswith("name: ")
    with pytest.raises(InputError) as caught:
        TrainConfig.from_dict({"name": name})
    assert caught.value.field == "name"
    assert "{name}" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["a", "hanfu_girl", "v1.5-final", "汉服 女孩", "console", "com10", "nul2", "{x}", "x" * 100, "汉" * 66]
)
def test_names_that_can_be_files_are_taken(name: str, tmp_path: Path) -> None:
    assert TrainConfig.from_dict({"name": name}).name == name
    (tmp_path / f"{name}-step00000100.safetensors").touch()


def test_name_is_required() -> None:
    with pytest.raises(InputError, match="give the LoRA a name"):
        TrainConfig.from_dict({})


# ------------------------------------------------------------------ files and changes
def test_toml_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(config(network__rank=4).to_toml(), encoding="utf-8-sig")
    assert TrainConfig.from_toml(path).network.rank == 4


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"name = ", "is not valid TOML"),
        (b"a = 1\na = 2", "is not valid TOML"),
        (b"#" * 1_000_001, "larger than 1 MB"),
        (b"rank = " + b"9" * 5000, "is not valid TOML"),
    ],
    ids=["missing", "not UTF-8", "cut off", "twice", "too large", "endless number"],
)
def test_unusable_file_is_one_sentence(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "a.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=sentence) as caught:
        TrainConfig.from_toml(path)
    assert "a.toml" in str(caught.value)


def test_with_values_changes_a_copy() -> None:
    before = config()
    after = before.with_values({"network.rank": 4, "name": "other", "training.optimizer_args": {"weight_decay": 0.1}})
    assert (after.network.rank, after.name, after.training.optimizer_args) == (4, "other", {"weight_decay": 0.1})
    assert before == config()


@pytest.mark.parametrize("key", ["network.rnak", "rank", "training.optimizer_args.weight_decay", "", ".", "a.b.c.d"])
def test_with_values_refuses_unknown_keys(key: str) -> None:
    with pytest.raises(InputError, match="there is no such field"):
        config().with_values({key: 1})


def test_defaults_are_not_shared_between_configurations() -> None:
    config().samples.prompts.append("x")
    config().training.optimizer_args["a"] = 1
    assert config().samples.prompts == []
    assert config().training.optimizer_args == {}


# ------------------------------------------------------------------ the description
@pytest.mark.parametrize("item", OPTIONS, ids=lambda o: o.path)
def test_every_option_says_what_it_is(item: Option) -> None:
    assert item.title
    assert item.help.endswith((".", ")", "?"))
    assert TrainConfig.from_dict(nested(item.path, item.default or "a" if item.path == "name" else item.default))


def test_schema_describes_exactly_the_options() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["required"] == ["name"]
    found = {}
    for name, entry in schema["properties"].items():
        found |= {f"{name}.{k}": v for k, v in entry["properties"].items()} if "properties" in entry else {name: entry}
    assert list(found) == [o.path for o in OPTIONS]
    for item in OPTIONS:
        entry = found[item.path]
        assert entry["default"] == item.default
        assert (entry.get("minimum"), entry.get("maximum")) == (item.min, item.max)
        assert tuple(entry.get("enum", ())) == item.choices


def test_toml_carries_every_help_text() -> None:
    text = config().to_toml()
    assert all(item.help in text for item in OPTIONS)
