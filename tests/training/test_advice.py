from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.config.train import require_warmup
from lora_trainer.core.errors import InputError
from lora_trainer.core.messages import Message
from lora_trainer.dataset.listing import Remark
from lora_trainer.dataset.plan import Plan
from lora_trainer.dataset.scan import Dataset
from lora_trainer.training.advice import advise, calculate, idle
from tests.helpers import config, data, item

SOUND = {"data__trigger": "sks_", "training__epochs": 100}


def dataset(count: int = 20, uncaptioned: int = 0, **values: Any) -> Dataset:
    items = [item(f"{index:03d}.png", **values) for index in range(count)]
    return Dataset(Path("pictures"), items, uncaptioned=[i.path for i in items[:uncaptioned]])


def about(path: str, found: list[Message]) -> list[str]:
    return [str(a) for a in found if a.field == path]


def test_sound_settings_are_not_criticised() -> None:
    assert advise(config(**SOUND), dataset()) == []


@pytest.mark.parametrize(
    ("pictures", "rank", "sensible"),
    [
        *[(19, 16, None), (19, 17, 16), (20, 32, None), (20, 33, 32)],
        *[(50, 64, None), (50, 65, 64), (150, 128, None), (150, 129, 128)],
    ],
)
def test_rank_is_held_against_the_number_of_pictures(pictures: int, rank: int, sensible: int | None) -> None:
    found = advise(config(network__rank=rank, network__alpha=rank / 2, **SOUND), dataset(pictures))
    assert about("network.rank", found) == (
        []
        if sensible is None
        else [
            f"Rank {rank} is high for {pictures} pictures: it learns them by heart and shows artifacts. Try {sensible}."
        ]
    )


@pytest.mark.parametrize(
    ("alpha", "words"),
    [(24, ""), (24.5, "more than the rank"), (2, ""), (1.9, "small against the rank"), (0, ""), (16, ""), (8, "")],
)
def test_alpha_is_held_against_the_rank(alpha: float, words: str) -> None:
    found = about("network.alpha", advise(config(network__rank=16, network__alpha=alpha, **SOUND)))
    assert len(found) == bool(words)
    assert all(words in text for text in found)


@pytest.mark.parametrize(
    ("optimizer", "unet", "text", "batch", "high"),
    [
        ("AdamW", 5e-4, 0, 1, set()),
        ("AdamW", 6e-4, 0, 1, {"training.unet_lr"}),
        ("AdamW", 1e-3, 0, 4, set()),
        ("AdamW", 1.1e-3, 0, 4, {"training.unet_lr"}),
        ("AdamW", 1e-4, 5e-5, 1, set()),
        ("AdamW", 1e-4, 6e-5, 1, {"training.text_lr"}),
        ("AdamW", 5e-4, 1.1e-4, 1, {"training.text_lr"}),
        ("AdamW", 0, 1e-4, 1, set()),
        ("AdamW", 0, 1.1e-4, 1, {"training.text_lr"}),
        ("Prodigy", 1, 1, 1, set()),
        ("Prodigy", 1, 0, 1, set()),
        ("Prodigy", 0.5, 0.5, 1, {"training.unet_lr"}),
        ("Prodigy", 1e-4, 0, 1, {"training.unet_lr"}),
    ],
)
def test_rates_are_held_against_what_is_usual(
    optimizer: str, unet: float, text: float, batch: int, high: set[str]
) -> None:
    rates = {"training__optimizer": optimizer, "training__unet_lr": unet, "training__text_lr": text}
    found = advise(config(training__accumulate=batch, **rates, **SOUND))
    assert {a.field for a in found} == high


@pytest.mark.parametrize(
    ("trigger", "words"),
    [
        ("", "There is no trigger word"),
        ("  ", "There is no trigger word"),
        ("girl", "common word"),
        ("Girl, red", "common word"),
        ("sks_", ""),
        ("sks_ girl", ""),
    ],
)
def test_trigger_should_be_a_word_of_ones_own(trigger: str, words: str) -> None:
    found = about(
        "data.trigger", advise(config(data__trigger=trigger), is_common_word=lambda w: w in ("Girl", "girl", "red"))
    )
    assert len(found) == bool(words)
    assert all(words in text for text in found)


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("embedding", "gloop", "an embedding named “gloop”"),
        ("style", "Gloop", "a style named “Gloop”"),
        ("wildcard", "__gloop__", "the wildcard __gloop__"),
        ("syntax", "(", "“(” in the trigger “gloop_xx” is not read as a word"),
    ],
)
def test_what_prompts_take_the_trigger_for_is_told(kind: str, name: str, said: str) -> None:
    asked: list[str] = []

    def words(trigger: str) -> list[tuple[str, str]]:
        asked.append(trigger)
        return [(kind, name)]

    (text,) = about("data.trigger", advise(config(data__trigger=" gloop_xx "), words=words))
    assert said in text
    assert asked == ["gloop_xx"]
    assert len(about("data.trigger", advise(config(data__trigger=""), words=words))) == 1  # that there is none
    assert asked == ["gloop_xx"]


def test_better_trigger_is_proposed() -> None:
    (text,) = about("data.trigger", advise(config(data__trigger="Red girl"), is_common_word=lambda w: True))
    assert "“Red girl”" in text
    assert text.endswith("like red_xx.")


@pytest.mark.parametrize(
    ("resolution", "native", "said"),
    [
        (512, 512, False),
        (384, 512, False),
        (383, 512, True),
        (768, 512, False),
        (769, 512, True),
        (128, 128, False),
        (512, 128, True),
    ],
)
def test_resolution_is_held_against_the_checkpoint(resolution: int, native: int, said: bool) -> None:
    found = advise(config(data__resolution=resolution, **SOUND), native_resolution=native)
    assert len(about("data.resolution", found)) == said


@pytest.mark.parametrize(("side", "said"), [(342, False), (341, True), (512, False), (100, True)])
def test_enlarged_pictures_are_counted(side: int, said: bool) -> None:
    pictures = Dataset(Path("p"), [*dataset(19).items, item("small.png", (side, side))])
    found = about("data.folder", advise(config(**SOUND), pictures))
    assert len(found) == said
    if said:
        assert found[0].startswith(f"1 pictures are small and would be enlarged (small.png by {512 / side:.1f}×)")


@pytest.mark.parametrize(("width", "said"), [(512, False), (639, False), (642, True), (900, True)])
def test_cropped_pictures_are_counted(width: int, said: bool) -> None:
    square = data(buckets=False)
    found = about("data.folder", advise(config(**SOUND), dataset(20, size=(width, 512), settings=square)))
    assert found == (
        ["20 pictures lose more than a fifth of their area by cropping, for example 000.png."] if said else []
    )


@pytest.mark.parametrize("count", [0, 3])
def test_missing_captions_are_counted(count: int) -> None:
    found = about("data.folder", advise(config(**SOUND), dataset(uncaptioned=count)))
    assert [text.split(";")[0] for text in found] == ([f"{count} pictures have no caption"] if count else [])


@pytest.mark.parametrize(
    ("values", "repeats", "words"),
    [
        ({"training__epochs": 19}, 1, "seen only 19 times"),
        ({"training__epochs": 20}, 1, ""),
        ({"training__epochs": 2}, 10, ""),
        ({"training__epochs": 500}, 1, ""),
        ({"training__epochs": 501}, 1, "seen 501 times"),
        ({"training__steps": 100}, 1, "seen only 5 times"),
        ({"training__steps": 100, "training__batch_size": 4}, 1, ""),
    ],
)
def test_length_is_held_against_what_is_usual(values: dict[str, int], repeats: int, words: str) -> None:
    found = about("training.epochs", advise(config(data__trigger="sks_", **values), dataset(20, repeats=repeats)))
    assert len(found) == bool(words)
    assert all(words in text for text in found)


@pytest.mark.parametrize(("batch", "said"), [(20, False), (21, True)])
def test_batch_is_held_against_the_pictures(batch: int, said: bool) -> None:
    found = advise(config(training__batch_size=batch, **SOUND), dataset(20))
    assert len(about("training.batch_size", found)) == said


# ------------------------------------------------------------------ the step calculator
@given(
    sizes=st.lists(st.sampled_from([(512, 512), (300, 600), (900, 500)]), min_size=1, max_size=9),
    repeats=st.integers(1, 4),
    share=st.sampled_from([0, 0.2]),
    epochs=st.integers(1, 5),
    steps=st.integers(0, 30),
    batch=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    every=st.tuples(st.integers(0, 3), st.integers(0, 7)),
)
def test_calculator_counts_what_a_run_does(sizes, repeats, share, epochs, steps, batch, accumulate, every) -> None:
    settings = config(
        validation__share=share,
        training__epochs=epochs,
        training__steps=steps,
        training__batch_size=batch,
        training__accumulate=accumulate,
        save__every_epochs=every[0],
        save__every_steps=every[1],
    )
    pictures = Dataset(Path("p"), [item(f"{i}.png", size, repeats=repeats) for i, size in enumerate(sizes)])
    result = calculate(settings, pictures)
    held = 0 if not share or len(sizes) < 2 else max(1, round(len(sizes) * share))
    assert result.images == (len(sizes) - held) * repeats
    assert result.steps == (steps or result.steps_per_epoch * epochs)

    from lora_trainer.dataset.plan import held_out

    plan = Plan(held_out(pictures.items, share, settings.training.seed)[0], settings)
    done = [plan.step(number) for number in range(1, result.steps + 1)]
    assert result.epochs == done[-1].epoch
    assert (
        sum(len(s.batches) for s in done[: result.steps_per_epoch]) == result.batches_per_epoch
        or result.steps < result.steps_per_epoch
    )
    written = [
        s.number
        for s in done
        if s.number == result.steps
        or (every[0] and s.ends_epoch and s.epoch % every[0] == 0)
        or (every[1] and s.number % every[1] == 0)
    ]
    assert result.files == len(written)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"training__warmup": 1000}, "1000 steps of warm-up are more than the run's 40 steps"),
        ({"training__warmup": 41}, "more than the run's 40 steps"),
        ({"training__warmup": 40}, ""),
        ({"training__warmup": 0.5}, ""),
        ({"training__warmup": 5, "training__accumulate": 10}, "more than the run's 4 steps"),
        ({"training__warmup": 0.1, "training__scheduler": "constant"}, "constant has no warm-up"),
        ({"training__warmup": 0.1, "training__scheduler": "constant_with_warmup"}, ""),
        ({"training__scheduler": "constant"}, ""),
    ],
)
def test_a_warmup_that_is_not_done_is_said(values: dict[str, Any], words: str) -> None:
    settings = config(training__epochs=4, **values)
    said = about("training.warmup", advise(settings, dataset(10)))
    assert [words in sentence for sentence in said] == ([True] if words else [])
    steps = calculate(settings, dataset(10)).steps
    if not words:
        require_warmup(settings, steps)
        return
    with pytest.raises(InputError, match="warm-up") as caught:
        require_warmup(settings, steps)
    assert caught.value.field == "training.warmup"


@pytest.mark.parametrize(
    ("values", "paths"),
    [
        ({}, []),
        ({"training__scheduler_cycles": 2}, ["training.scheduler_cycles"]),
        ({"training__scheduler_cycles": 2, "training__scheduler": "cosine_with_restarts"}, []),
        (
            {"training__scheduler_power": 2, "network__conv_alpha": 1},
            ["training.scheduler_power", "network.conv_alpha"],
        ),
        ({"network__conv_rank": 4, "network__targets": "attention+conv"}, []),
        ({"data__keep_tokens": 2, "data__shuffle": False}, ["data.keep_tokens"]),
        ({"data__caption_variants": 2}, ["data.caption_variants"]),
        ({"data__caption_variants": 2, "training__text_lr": 0}, []),
    ],
)
def test_settings_that_nothing_uses_are_named(values: dict[str, Any], paths: list[str]) -> None:
    found = list(idle(config(**values)))
    assert [a.field for a in found] == paths
    assert all(a in advise(config(**values)) for a in found)


def test_remarks_on_the_folder_are_advice_too() -> None:
    known = dataset()
    known.remarks.append(Remark(Message("Files that are not used ({count}): {names}.", {"count": 1, "names": "a.mp4"})))
    assert about("data.folder", advise(config(**SOUND), known)) == ["Files that are not used (1): a.mp4."]
