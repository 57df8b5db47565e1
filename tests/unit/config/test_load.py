"""Recipe files: extends, --set, and errors that name file, path and nearest key."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from megadeberta.config.load import load_run_config, parse_run_config, read_recipe
from megadeberta.errors import ConfigError
from megadeberta.preflight.validate import validate_run
from tests.models import RECIPE, recipe, write_json

SHIPPED = sorted((Path(__file__).parents[3] / "ds_configs").glob("*.json"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_json(tmp_path / "tiny.json", RECIPE)


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.name)
@pytest.mark.parametrize("ranks", [1, 2])
def test_shipped_recipe_is_valid(shipped: Path, ranks: int) -> None:
    config = load_run_config(shipped)
    assert config.name == shipped.stem
    validate_run(config, world_size=ranks, source=str(shipped))


def test_values_and_defaults_are_read(path: Path) -> None:
    config = load_run_config(path)
    assert (config.model.hidden_size, config.model.layer_norm_eps, config.data.valid) == (64, 1e-7, None)
    assert config.data.train == Path("shards/train")


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("optimizer.lr=5e-4", "optimizer", "lr", 5e-4),
        ("training.output_dir=runs/with=sign", "training", "output_dir", Path("runs/with=sign")),
        ("training.output_dir=123", "training", "output_dir", None),
        ('training.output_dir="123"', "training", "output_dir", Path("123")),
        ("data.valid=null", "data", "valid", None),
        ("data.valid=shards/valid", "data", "valid", Path("shards/valid")),
        ("model.key_bias=false", "model", "key_bias", False),
        ('model.pos_att_type=["c2p"]', "model", "pos_att_type", ("c2p",)),
        ("model.pos_att_type=c2p|p2c", "model", "pos_att_type", ("c2p", "p2c")),
        ("checkpoint.keep_last=5", "checkpoint", "keep_last", 5),
    ],
)
def test_override_takes_values_of_each_kind(path: Path, override: str, section: str, key: str, value: Any) -> None:
    if override.endswith("output_dir=123"):  # a number where a path belongs: quote it
        with pytest.raises(ConfigError, match=r"training\.output_dir=123: must be the path of a file"):
            load_run_config(path, [override])
        return
    assert getattr(getattr(load_run_config(path, [override]), section), key) == value


def test_later_override_wins_and_the_deepspeed_block_can_be_reached(path: Path) -> None:
    config = load_run_config(path, ["deepspeed.zero_optimization.stage=1", "deepspeed.zero_optimization.stage=2"])
    assert config.deepspeed["zero_optimization"] == {"stage": 2}


@pytest.mark.parametrize("override", ["optimizer.lr", "=5", "optimizer..lr=5", ".lr=1", ""])
def test_override_of_the_wrong_form_shows_the_right_one(path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"is not of the form section\.key=value, e\.g\. --set optimizer\.lr=5e-4"):
        load_run_config(path, [override])


def test_override_below_a_value_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'optimizer\.lr\.x=1': optimizer\.lr is a value, not a section"):
        load_run_config(path, ["optimizer.lr.x=1"])


def test_override_with_a_number_too_long_for_python_is_one_error(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.steps="):
        load_run_config(path, ["training.steps=" + "9" * 5000])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (recipe(model={"num_head": 12}), r"unknown key model\.num_head; did you mean 'num_attention_heads'\?"),
        (recipe(optimiser={"lr": 1}), r"unknown key optimiser; did you mean 'optimizer'\?"),
        (recipe(training={"zzzz": 1}), r"unknown key training\.zzzz; known keys here: steps, seed, output_dir"),
        (recipe(model={"hidden_size": "wide"}), r"model\.hidden_size='wide': Input should be a valid integer"),
        (recipe(model={"hidden_size": -1}), r"model\.hidden_size=-1: Input should be greater than 0"),
        (recipe(optimizer={"lr": float("nan")}), r"optimizer\.lr=nan: Input should be"),
        (recipe(name="a/b"), r"name='a/b': must match"),
        (recipe(model=5), r"model=5: must be a section with keys of its own"),
        (recipe(model={"pos_att_type": ["c2c"]}), r"model\.pos_att_type\.0='c2c': Input should be 'c2p' or 'p2c'"),
        (recipe(schedule={"name": "cosin"}), r"schedule\.name='cosin': Input should be 'linear', "),
        (
            {k: v for k, v in RECIPE.items() if k != "optimizer"},
            r"optimizer is required and missing; .*--set opt",
        ),
        (recipe(model={"a": 1, "b": 2}), r"unknown key model\.a; .* \(and 1 more\)"),
        (recipe(checkpoint={"interval": 40, "keep_every": 100}), r"keep_every=100 is no multiple of .*interval=40"),
        (recipe(parallel={"timeout_seconds": 0.5}), r"timeout_seconds=0\.5 is below 1 second"),
        (
            recipe(objective={"mask_token_prob": 0.8, "random_token_prob": 0.3}),
            r"random_token_prob = 1\.1, which",
        ),
    ],
)
def test_wrong_value_names_file_path_and_what_is_allowed(tmp_path: Path, values: dict, message: str) -> None:
    path = write_json(tmp_path / "tiny.json", values)
    with pytest.raises(ConfigError, match=message) as raised:
        load_run_config(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_extends_merges_objects_and_replaces_values(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_json(tmp_path / "base.json", recipe(deepspeed={"zero_optimization": {"stage": 1, "overlap_comm": False}}))
    child = {"extends": "../base.json", "name": "child", "deepspeed": {"zero_optimization": {"stage": 2}}}
    grandchild = {"extends": "child.json", "model": {"pos_att_type": ["c2p"]}}
    write_json(tmp_path / "sub" / "child.json", child)
    config = load_run_config(write_json(tmp_path / "sub" / "grandchild.json", grandchild))
    assert config.name == "child"
    assert config.deepspeed["zero_optimization"] == {"stage": 2, "overlap_comm": False}
    assert config.model.pos_att_type == ("c2p",)
    assert config.model.hidden_size == 64


def test_circle_of_extends_is_shown(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"extends": "b.json"})
    write_json(tmp_path / "b.json", {"extends": "a.json"})
    with pytest.raises(ConfigError, match=r"extends forms a loop: .*a\.json -> .*b\.json -> .*a\.json"):
        read_recipe(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "a",\n "name": "b"}', r"key 'name' is given twice in one object"),
        ('{"model": {"x": 1,\n "x": 2}}', r"key 'x' is given twice"),
        ('{"name": 1,\n"x"}', r"r\.json:2: not valid JSON"),
        ("", r"r\.json: is an empty file; a recipe that extends"),
        ("[1]", r"a recipe is one JSON object, found list"),
        ('{"extends": 5}', r"extends must be the path or name of another recipe, found 5"),
        ("[" * 200_000, r"not a usable recipe"),
        ('{"name": ' + "9" * 5000 + "}", r"not a usable recipe: Exceeds the limit"),
        ('\ufeff{"name": 1}', r"r\.json: name=1: Input should be a valid string"),
        ('{"model_type": "deberta-v2"}', r"is no recipe.*`megadeberta convert import` of its folder makes weights"),
        ('{"train_batch_size": 8}', r"is no recipe.*settings of DeepSpeed are the deepspeed section"),
        ('{"step": 1, "loss": 2}', r"r\.json: is no recipe, which has sections such as model, data and training; give"),
        ('{"name": "a", "model": {"vocab_size": 1' + "0" * 22 + "}}", r"model\.vocab_size has 23 digits; the largest"),
    ],
)
def test_file_that_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_run_config(path)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "binary.json"
    for content, message in (
        (b"{}\xe9", r"recipe .*binary\.json is no text in UTF-8 \(byte 3\); a recipe is a JSON or YAML file"),
        ('{"name": "x"}'.encode("utf-16"), r"\(byte 1\); it is UTF-16: iconv -f UTF-16 -t UTF-8 converts it"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            load_run_config(path)
    path.unlink()
    path.symlink_to("gone.json")
    with pytest.raises(ConfigError, match=r"binary\.json does not exist; it is a link to gone\.json, which does not"):
        load_run_config(path)
    with pytest.raises(ConfigError, match=r"is a folder; give a file in it"):
        load_run_config(tmp_path)


def test_missing_file_names_the_nearest_one(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe .*tiny2\.json does not exist; did you mean .*tiny\.json\?"):
        load_run_config(path.with_name("tiny2.json"))
    with pytest.raises(ConfigError, match=r"qqq\.toml does not exist; `megadeberta recipes` lists"):
        load_run_config(path.with_name("qqq.toml"))
    with pytest.raises(ConfigError, match=r"does not exist; the folder .*none does not exist either"):
        load_run_config(path.parent / "none" / "r.json")


def test_source_is_named_for_values_without_a_file() -> None:
    with pytest.raises(ConfigError, match=r"^checkpoint step-5: unknown key bogus"):
        parse_run_config(recipe(bogus=1), source="checkpoint step-5")


def test_five_hundred_mutated_recipes_are_accepted_or_refused_and_never_crash(tmp_path: Path) -> None:
    draw = random.Random(0)
    junk = [None, True, -1, 0, 1, 2**70, 1e400, -1e-9, math.nan, "", "x", "\ud800", [], {}, [[]], {"a": {}}, [1, "b"]]
    outcomes = {"accepted": 0, "refused": 0}
    for number in range(500):
        values = json.loads(json.dumps(RECIPE))
        for _ in range(draw.randint(1, 2)):
            section = draw.choice(list(values))
            node = values[section] if isinstance(values[section], dict) and draw.random() < 0.8 else values
            key = draw.choice([*node, "bogus"]) if node else "bogus"
            if draw.random() < 0.2:
                node.pop(key, None)
            else:
                node[key] = draw.choice(junk)
        path = write_json(tmp_path / f"{number}.json", values)
        try:
            validate_run(load_run_config(path), world_size=draw.choice([1, 2, 3]), source=str(path))
            outcomes["accepted"] += 1
        except ConfigError as error:
            assert len(str(error)) > 10
            outcomes["refused"] += 1
    assert outcomes["accepted"] >= 20, "too few mutations are harmless for the test to mean anything"
    assert outcomes["refused"] > 250
