"""Which settings differ between a recipe and that of a checkpoint."""

from megadeberta.config.changes import changed_settings


def test_every_changed_setting_is_named_with_both_values_and_no_secret() -> None:
    saved = {"name": "a", "training": {"steps": 60, "tf32": False}, "deepspeed": {"x": {"API_KEY": "old"}}}
    current = {"name": "b", "training": {"steps": 66, "tf32": True}, "deepspeed": {"x": {"API_KEY": "new"}, "y": 1}}
    line = changed_settings(saved, current)
    assert line == "deepspeed.y - -> 1, training.steps 60 -> 66, training.tf32 false -> true"
    assert changed_settings(saved, saved) == ""
    many = {f"key{number}": number for number in range(30)}
    assert changed_settings({}, many).endswith("(and 18 more)")
    assert changed_settings(saved, current, among=("training.steps", "x")) == "training.steps 60 -> 66"
