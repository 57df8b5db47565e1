"""Replaced token detection learns a language that can be learnt in seconds: tokens that count upwards."""

import torch

from megadeberta.config.objective import RtdConfig
from megadeberta.layers.catalogue import rtd_layers
from megadeberta.model.initialize import initialize
from megadeberta.model.whole import WholeModel
from tests.models import hide, tiny_v3

LENGTH, MASK_ID, BATCH = 12, 31, 32


def _batch(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(0, 26, (BATCH, 1), generator=generator)
    ids = 4 + (starts + torch.arange(LENGTH)) % 26
    ids[:, 0], ids[:, -1] = 1, 2
    positions = torch.stack([torch.randperm(LENGTH - 2, generator=generator)[:2] + 1 for _ in range(BATCH)])
    return hide(ids, positions, mask_id=MASK_ID, step=step)


def test_discriminator_finds_the_tokens_that_break_the_count() -> None:
    config = tiny_v3(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, intermediate_size=64, enhanced_mask_decoder=False
    )
    model = WholeModel(rtd_layers(config, RtdConfig(generator_layers=1, sampling_temperature=4.0)))
    initialize(model, seed=1, std=0.05)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(250):
        terms, _ = model(**_batch(step))
        means = {name: total / count.clamp_min(1) for name, (total, count) in terms.items()}
        optimizer.zero_grad()
        (means["mlm_loss"] + 50 * means["rtd_loss"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        terms, _ = model(**_batch(10_000))
    share = {name: (total / count).item() for name, (total, count) in terms.items()}
    # A hot generator keeps replacing (temperature 4), so calling everything original stays wrong.
    assert share["replaced_rate"] > 0.05
    assert share["rtd_recall"] > 0.7 and share["rtd_precision"] > 0.7
    assert share["mlm_accuracy"] > 0.9
