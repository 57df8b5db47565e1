"""A rank that is silent or gone is an error within the configured time, on DeepSpeed's own groups too."""

import time

import pytest
import torch
from torch import distributed

from megadeberta.engine.build import build_engine
from megadeberta.engine.peer_loss import raise_peer_loss
from megadeberta.engine.process_group import start_process_group
from megadeberta.errors import EXIT_PEER_LOST, PeerLostError
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.model.initialize import initialize
from megadeberta.model.whole import WholeModel
from tests.distributed.layouts import Layout
from tests.ranks import run_ranks

TIMEOUT = 3.0
RUN = Layout("v3", data=2, zero=1, micro_batch=2).config


def _wait_for_a_silent_rank(rank: int, world_size: int) -> tuple[str, float]:
    """Rank 1 never joins the all-reduce over ZeRO's group; rank 0's error and how long it took."""
    start_process_group(60.0)
    model = WholeModel(token_model_layers(RUN.model))
    initialize(model, seed=1, std=0.02)
    engine = build_engine(model, RUN.optimizer, block=RUN.deepspeed, timeout_seconds=TIMEOUT)
    if rank == 1:
        time.sleep(1.8 * TIMEOUT)  # the barrier behind it waits as long at most
        return "", 0.0
    started = time.monotonic()
    try:
        with raise_peer_loss():
            distributed.all_reduce(torch.ones(1), group=engine.optimizer.dp_process_group)
    except PeerLostError as error:
        return str(error), time.monotonic() - started
    return "", time.monotonic() - started


def test_silent_rank_is_an_error_after_the_configured_timeout() -> None:
    text, seconds = run_ranks(_wait_for_a_silent_rank, 2)[0]
    assert "another rank ended or stopped answering" in text
    assert 0.9 * TIMEOUT < seconds < 1.75 * TIMEOUT


@pytest.mark.parametrize(
    "text",
    [
        "[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242",
        "[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation to complete",
        "NCCL error: remote process exited or there was a network error, ncclRemoteError",
    ],
)
def test_errors_of_the_backends_about_peers_become_one_line_with_its_own_exit_code(text: str) -> None:
    with pytest.raises(PeerLostError, match=r"another rank ended .* same command resumes") as caught, raise_peer_loss():
        raise RuntimeError(text)
    assert caught.value.exit_code == EXIT_PEER_LOST
    assert ".cc:" not in str(caught.value)
    assert text.partition("] ")[2] in str(caught.value)


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shapes do not match"), raise_peer_loss():
        raise RuntimeError("shapes do not match")
