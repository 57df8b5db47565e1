"""Training a vocabulary on a sample of the text."""

import io
import re
import threading

import sentencepiece

from megadeberta.data.tokenizer.fast.sentencepiece_file import round_scores
from megadeberta.data_prep.library_vocabulary import train_library_vocabulary
from megadeberta.data_prep.normalization import normalization
from megadeberta.data_prep.options import VocabularyKind, VocabularyOptions
from megadeberta.data_prep.vocabulary_sample import Sample
from megadeberta.errors import DataError, MegadebertaError

# The thread count decides how SentencePiece adds up its floating-point sums, so it is part of the result and must
# not follow the machine.
_THREADS = 16
_ONLY_ERRORS = 2


def train_vocabulary(sample: Sample, options: VocabularyOptions) -> bytes:
    """A vocabulary of the kind that is asked for, as the bytes of its file: [PAD] 0, [CLS] 1, [SEP] 2, [UNK] 3.

    A unigram model is an ``spm.model`` without a [MASK] piece and with rounded scores, see ``round_scores``; the others
    are a ``tokenizer.json``, see ``train_library_vocabulary``. The same sample and options give the same bytes on any
    machine. Runs in a thread of its own so that an interrupt reaches the program at once.

    Raises:
        DataError: the sample allows fewer pieces than asked, or needs more for its characters alone.
    """
    outcome: list[bytes | BaseException] = []
    thread = threading.Thread(target=_train, args=(sample, options, outcome), daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    result = outcome[0]
    if isinstance(result, RuntimeError):
        raise _explain(str(result), sample, options) from result
    if isinstance(result, BaseException):
        raise result
    return result


def _train(sample: Sample, options: VocabularyOptions, outcome: list[bytes | BaseException]) -> None:
    model = io.BytesIO()
    try:
        if options.kind is not VocabularyKind.UNIGRAM:
            outcome.append(train_library_vocabulary(sample, options))
            return
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sample.sentences(),
            model_writer=model,
            model_type="unigram",
            vocab_size=options.size,
            character_coverage=options.character_coverage,
            byte_fallback=options.byte_fallback,
            **normalization(options),
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece="[PAD]",
            bos_piece="[CLS]",
            eos_piece="[SEP]",
            unk_piece="[UNK]",
            num_threads=_THREADS,
            minloglevel=_ONLY_ERRORS,
        )
        outcome.append(round_scores(model.getvalue()))
    except BaseException as error:
        outcome.append(error)


def _explain(message: str, sample: Sample, options: VocabularyOptions) -> MegadebertaError:
    basis = f"{sample.num_bytes} bytes of text"
    more = "add text" if sample.is_all else f"train on more of it with --vocab-sample-bytes={2 * sample.num_bytes}"
    if found := re.search(r"size too high .*<= (\d+)", message):
        return DataError(
            f"--vocab-size={options.size} is more than this corpus allows: {basis} give at most {found[1]} pieces; "
            f"choose --vocab-size={found[1]} or less, or {more}"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return DataError(
            f"--vocab-size={options.size} is too small: the characters of {basis} need {found[1]} pieces alone; "
            f"choose --vocab-size={found[1]} or more, or lower --character-coverage"
        )
    return DataError(f"no vocabulary could be trained on {basis}: {message.splitlines()[0]}; add text")
