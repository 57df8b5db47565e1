import pytest

from megadeberta.config.redact import is_secret_name, redact


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_PROFILE",
        "MLFLOW_TRACKING_PASSWORD",
        "db_passwd",
        "apikey",
    ],
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["HOME", "TOKENIZERS_PARALLELISM", "tokenizer", "RANK", "MASTER_ADDR"])
def test_ordinary_variables_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


def test_secrets_are_hidden_at_every_depth_and_settings_stay() -> None:
    values = {
        "wandb": {"api_key": "canary", "project": "x"},
        "tokens": ["canary", "canary"],
        "secret": {"inner": ["canary", {"deep": "canary"}]},
        "remote": "https://user:canary@host/path",
        "model": {"key_bias": True, "share_att_key": False, "pad_token_id": 0, "vocab_size": 5},
        "data": {"tokenizer": "spm.model"},
        "empty_key": "",
    }
    hidden = redact(values)
    assert "canary" not in str(hidden)
    assert hidden["model"] == values["model"]
    assert hidden["data"] == values["data"]
    assert hidden["wandb"] == {"api_key": "***", "project": "x"}
    assert hidden["remote"] == "https://***@host/path"
    assert hidden["empty_key"] == ""
    assert values["wandb"]["api_key"] == "canary", "the original must not change"
