"""The table of kinds."""

from megadeberta.finetune.kinds.choices import Choices
from megadeberta.finetune.kinds.kind import Kind
from megadeberta.finetune.kinds.spans import Spans
from megadeberta.finetune.kinds.texts import Classification, Regression
from megadeberta.finetune.kinds.tokens import Tokens

KINDS: dict[str, Kind] = {
    "classification": Classification(),
    "regression": Regression(),
    "tokens": Tokens(),
    "multiple-choice": Choices(),
    "spans": Spans(),
}
