"""Load an export with transformers alone and fill a few masks.

    python docs/examples/fill_mask_with_transformers.py runs/quickstart/export

Nothing of megadeberta is imported: this is what a user of the published folder writes. The class of the enhanced mask
decoder is a small file inside the export, which trust_remote_code=True runs: read it where the folder is not yours.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
from transformers.utils import logging

TEXTS = (
    "The city is the capital [MASK] the country .",
    "He was born in [MASK] and died in London .",
    "The song was released in the United [MASK] .",
    "It was the first [MASK] of the season .",
)


def load_model(export: Path) -> torch.nn.Module:
    """The masked-language model of an export, in evaluation mode."""
    return AutoModelForMaskedLM.from_pretrained(export, trust_remote_code=True).eval()


def main() -> None:
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "config.json").exists():
        sys.exit(f"usage: python {sys.argv[0]} EXPORT (a folder of `megadeberta convert export`)")
    export = Path(sys.argv[1])
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(export)
    model = load_model(export)
    for text in TEXTS:
        inputs = tokenizer(text, return_tensors="pt")
        position = inputs.input_ids[0].tolist().index(tokenizer.mask_token_id)
        with torch.no_grad():
            logits = model(inputs.input_ids, attention_mask=inputs.attention_mask).logits[0, position]
        best = torch.topk(logits.softmax(-1), 5)
        guesses = ", ".join(
            f"{str(tokenizer.decode([token])).strip()} {probability:.2f}"
            for probability, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        print(f"{text}\n    {guesses}")


if __name__ == "__main__":
    main()
