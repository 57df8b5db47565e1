"""Old weights under a new vocabulary: equal pieces keep their rows and outputs, the others are drawn and counted."""

from pathlib import Path

import pytest
import sentencepiece
import torch

from megadeberta.convert.import_folder import import_folder
from megadeberta.convert.import_parts import import_parts
from megadeberta.convert.new_vocabulary import equal_pieces
from megadeberta.data.tokenizer import load_tokenizer
from megadeberta.errors import CheckpointError, DataError
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.layers.vocabulary import rounded_vocabulary
from megadeberta.model.initialize import initialize
from megadeberta.model.whole import WholeModel
from megadeberta.weights.source import load_weights
from tests.data_fixtures import train_vocabulary
from tests.models import tiny_rtd
from tests.unit.convert.published import write_published_folder
from tests.unit.convert.small_models import small_config, small_model, weights_of, write_checkpoint
from tests.unit.convert.test_convert_import import hf_folder

TABLE, BIAS = "embeddings.word_embeddings.weight", "mlm_head.decoder.bias"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary of other size and order with many of the pieces."""
    return train_vocabulary(tmp_path_factory.mktemp("other") / "other.model", vocab_size=700)


@pytest.fixture
def folder(tmp_path: Path, spm: Path) -> Path:
    made, _ = hf_folder(tmp_path / "hf", small_config())
    (made / "spm.model").write_bytes(spm.read_bytes())
    return made


def _pieces(path: Path) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


def test_tokens_that_were_added_without_rows_get_rows(folder: Path, spm: Path, tmp_path: Path) -> None:
    library = load_tokenizer(spm).fast()
    library.add_tokens([f"<<{number}>>" for number in range(40)])
    library.save(str(folder / "tokenizer.json"))
    message = r"needs \d+ rows with \[MASK\], .*tokens were added to it without rows, which `convert import --tokenizer"
    with pytest.raises(CheckpointError, match=message):
        import_folder(folder, tmp_path / "out")
    import_folder(folder, tmp_path / "out", tokenizer=folder / "tokenizer.json")
    found, old = load_weights(tmp_path / "out"), weights_of(small_model(small_config()))
    needed, rows = load_tokenizer(found.tokenizer).vocab_size_needed, small_config().vocab_size
    assert found.config.vocab_size == rounded_vocabulary(needed) > needed - 1 > rows
    taken = load_tokenizer(spm).num_pieces
    assert torch.equal(found.weights[TABLE][:taken], old[TABLE][:taken])


def test_rows_of_equal_pieces_are_taken_and_others_drawn(folder: Path, spm: Path, other: Path, tmp_path: Path) -> None:
    lines = import_folder(folder, tmp_path / "out", tokenizer=other, seed=7)
    found, old = load_weights(tmp_path / "out"), weights_of(small_model(small_config()))
    pieces, old_ids = _pieces(other), {piece: i for i, piece in enumerate(_pieces(spm))}
    assert found.config.vocab_size == rounded_vocabulary(len(pieces) + 1) != small_config().vocab_size
    assert found.tokenizer.read_bytes() == other.read_bytes()
    fresh = WholeModel(token_model_layers(found.config))
    initialize(fresh, seed=7, std=found.config.initializer_range)
    drawn = 0
    for token_id, piece in enumerate(pieces):
        if piece in old_ids:
            assert torch.equal(found.weights[TABLE][token_id], old[TABLE][old_ids[piece]])
            assert found.weights[BIAS][token_id] == old[BIAS][old_ids[piece]]
        else:
            drawn += 1
            assert torch.equal(found.weights[TABLE][token_id], fresh.get_parameter(TABLE)[token_id])
            assert found.weights[BIAS][token_id] == 0
    assert 0 < drawn < len(pieces) / 2
    mask, old_mask = len(pieces), len(old_ids)
    assert torch.equal(found.weights[TABLE][mask], old[TABLE][old_mask]), "[MASK] stands behind the pieces of both"
    said = f"{len(pieces) + 1 - drawn} of {len(pieces) + 1} rows are those of equal pieces, {drawn} drawn from seed 7"
    assert {line.ours for line in lines if said in line.reason} == {TABLE, BIAS}
    same = [name for name in old if name not in (TABLE, BIAS)]
    assert all(torch.equal(found.weights[name], old[name]) for name in same if not name.startswith("relative."))


def test_outputs_of_text_in_common_pieces_do_not_change(folder: Path, spm: Path, other: Path, tmp_path: Path) -> None:
    import_folder(folder, tmp_path / "old")
    import_folder(folder, tmp_path / "new", tokenizer=other)
    pairs = [(new, old) for new, old in enumerate(equal_pieces(load_tokenizer(spm), load_tokenizer(other))) if old]
    chosen = torch.tensor(pairs[5:25])
    states = []
    for name, ids in (("new", chosen[:, 0]), ("old", chosen[:, 1])):
        source = load_weights(tmp_path / name)
        model = WholeModel(token_model_layers(source.config)).eval()
        model.load_state_dict(source.weights, strict=False)
        with torch.no_grad():
            logits = model.mlm_logits(ids[None], torch.ones(1, len(ids), dtype=torch.long))
        states.append(logits[..., ids])
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=1e-5)


def test_both_parts_move_together(spm: Path, other: Path, tmp_path: Path) -> None:
    config, objective = small_config(), tiny_rtd()
    model = small_model(config, objective=objective)
    section = objective.model_dump(mode="json")
    write_checkpoint(tmp_path / "run", model, config, spm, step=5, objective=section)
    published = write_published_folder(tmp_path / "run", tmp_path / "published", tmp_path / "scratch")
    generator = published / "pytorch_model.generator.bin"
    import_parts(published, tmp_path / "out", generator=generator, tokenizer=other)
    found = load_weights(tmp_path / "out")
    sources = equal_pieces(load_tokenizer(spm), load_tokenizer(other))
    delta = found.weights["discriminator.embeddings.word_embeddings.delta"]
    assert (
        delta.size(0) == found.weights["generator.embeddings.word_embeddings.weight"].size(0) == rounded_vocabulary(701)
    )
    assert not any(delta[row].any() for row, source in enumerate(sources) if source is None)
    whole = found.encoder_model().weights[TABLE]
    expected = load_weights(tmp_path / "run").encoder_model().weights[TABLE]
    for row, source in enumerate(sources):
        if source is not None:
            torch.testing.assert_close(whole[row], expected[source], rtol=0, atol=1e-6)


def test_the_old_vocabulary_is_needed_and_the_new_one_read(folder: Path, other: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the tokenizer .*nowhere\.model does not exist"):
        import_folder(folder, tmp_path / "out", tokenizer=tmp_path / "nowhere.model")
    (folder / "spm.model").unlink()
    with pytest.raises(CheckpointError, match=r"needs the vocabulary that the weights are for as well.*put it into"):
        import_folder(folder, tmp_path / "out", tokenizer=other)
    assert not (tmp_path / "out").exists()
