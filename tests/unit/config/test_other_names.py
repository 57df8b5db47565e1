"""What other trainers call a setting is answered with a setting that there is, and never hides one of ours."""

import importlib.util

import pytest

from megadeberta.config.deepspeed_block import KNOWN_KEYS, OURS
from megadeberta.config.deepspeed_sections import check_sections
from megadeberta.config.load import places_of_setting
from megadeberta.config.other_names import OTHER_NAMES, name_of_ours, option_of_ours
from megadeberta.config.shell import begins_for_shell
from megadeberta.errors import ConfigError


@pytest.mark.parametrize("ours", OTHER_NAMES)
def test_every_answer_is_a_setting_and_no_name_of_others_is_ours(ours: str) -> None:
    section, _, key = ours.partition(".")
    assert ours in places_of_setting(key) or (section == "deepspeed" and key.partition(".")[0] in KNOWN_KEYS)
    for theirs in OTHER_NAMES[ours].split():
        assert all(place.startswith("data.train.") for place in places_of_setting(theirs)), theirs
        assert theirs not in KNOWN_KEYS - OURS.keys(), theirs
        assert name_of_ours(theirs) == ours


def test_a_setting_that_is_given_as_an_option_is_named() -> None:
    assert option_of_ours("--eval-interval", places_of_setting) == (
        "a setting of the recipe is given as --set training.eval_interval=VALUE"
    )
    assert option_of_ours("--max-steps", places_of_setting) == (
        "a setting of the recipe is given as --set training.steps=VALUE"
    )
    assert option_of_ours("--frobnicate", places_of_setting) is None


@pytest.mark.parametrize("path", ["~", "~/a", "$HOME/a", "${SCRATCH}/a", "$X"])
def test_what_a_shell_replaces_is_told(path: str) -> None:
    assert begins_for_shell(path)


@pytest.mark.parametrize("path", ["a~/b", "~me.txt", "$5 a day", "a/$HOME", "", "s3://bucket/$x"])
def test_what_a_shell_leaves_is_a_path(path: str) -> None:
    assert not begins_for_shell(path)


def test_sections_are_those_of_the_installed_deepspeed() -> None:
    assert importlib.util.find_spec("deepspeed") is not None
    check_sections(
        {
            "zero_optimization": {
                "stage": 3,
                "reduce_bucket_size": 5e8,
                "overlap_comm": None,
                "stage3_prefetch_bucket_size": 1,
            },
            "fp16": {"enabled": True, "loss_scale": 0, "min_loss_scale": 1},
            "comms_logger": {"enabled": False, "prof_ops": []},
        },
        source="r",
    )
    for section, message in (
        (
            {"zero_optimization": {"offload_param": {"pin_memory": 1}}},
            r"offload_param.pin_memory must be true or false",
        ),
        ({"zero_optimization": {"reduce_bucket_size": 0.5}}, r"reduce_bucket_size must be a whole number, found 0.5"),
        ({"fp16": {"loss_scale": True}}, r"fp16.loss_scale must be a number, found True"),
        ({"bf16": {"enable": True}}, r"unknown key deepspeed.bf16.enable; did you mean 'enabled'\?"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_sections(section, source="r")
