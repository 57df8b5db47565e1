"""How tensor parallelism cuts parameters: every row exactly once, the same names under every degree."""

import pytest

from megadeberta.layers.cuts import ShardSlice, how_cut, shard_slice
from megadeberta.layers.vocabulary import VOCABULARY_UNIT, vocabulary_rows


@pytest.mark.parametrize("vocabulary", [128, 131, 1000, 50_265, 128_000, 128_100])
@pytest.mark.parametrize("tensor", [1, 2, 3, 4, 6, 8, 12, 16])
def test_shards_of_the_vocabulary_hold_every_row_once_and_are_nearly_equal(vocabulary: int, tensor: int) -> None:
    shards = vocabulary_rows(vocabulary, tensor)
    assert [row for shard in shards for row in shard] == list(range(vocabulary))
    sizes = [len(shard) for shard in shards]
    # One unit of rounding, and a last unit that is not full.
    assert max(sizes) - min(sizes) < 2 * VOCABULARY_UNIT
    assert all(shard.start % VOCABULARY_UNIT == 0 for shard in shards)


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("layer.3.self_attention.attention.query_proj.weight", "column"),
        ("generator.mask_decoder.layer.self_attention.attention.pos_key_proj.bias", "column"),
        ("layer.0.self_attention.dense.weight", "row"),
        ("layer.0.self_attention.dense.bias", None),
        ("discriminator.layer.11.feed_forward.up.bias", "column"),
        ("discriminator.layer.11.feed_forward.down.weight", "row"),
        ("discriminator.embeddings.word_embeddings.delta", "vocabulary"),
        ("discriminator.embeddings.position_embeddings.delta", None),
        ("mlm_head.decoder.bias", "vocabulary"),
        ("mlm_head.dense.weight", None),
        ("discriminator.rtd_head.dense.weight", None),
        ("relative.embedding.weight", None),
        ("layer.0.convolution.conv.weight", None),
    ],
)
def test_the_name_says_how_a_parameter_is_cut(name: str, cut: str | None) -> None:
    assert how_cut(name) == cut


def test_a_shard_is_named_by_the_whole_shape_and_its_place() -> None:
    up = "layer.0.feed_forward.up.weight"
    assert shard_slice(up, (64, 32), tensor=4, rank=1) == ShardSlice((64, 32), 0, 16, 32)
    down = shard_slice("layer.0.feed_forward.down.weight", (32, 64), tensor=4, rank=3)
    assert down == ShardSlice((32, 64), 1, 48, 64)
    assert down.local_shape == (32, 16)
    assert shard_slice("mlm_head.decoder.bias", (67,), tensor=2, rank=1) == ShardSlice((67,), 0, 32, 67)
    assert shard_slice("layer.0.feed_forward.down.bias", (32,), tensor=4, rank=3) is None
    assert shard_slice(up, (64, 32), tensor=1, rank=0) is None
