"""The bars of reliability by their ids: what each says, and what shows it."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults import recovery
from tests.faults.bench import Bench
from tests.faults.recovery import Found

_CHECKPOINTS = "tests/distributed/test_checkpoint_faults.py::"


@dataclass(frozen=True)
class Bar:
    """One row of the table: a case on a real run, or tests."""

    id: str
    says: str
    case: Callable[[Bench], Found] | None = None
    tests: tuple[str, ...] = ()
    """Names of files or of single tests; all of their long forms run too."""
    options: tuple[str, ...] = ()
    """Of pytest, besides."""


_BARS = (
    Bar("D1", "frozen at 300 instants of a save: the pointer leads to a whole checkpoint", tests=(
        f"{_CHECKPOINTS}test_at_every_instant_of_a_save_the_pointer_leads_to_a_whole_checkpoint",)),
    Bar("D2", "20 kill -9 of everything: resumed, losses bit-equal", tests=(
        "tests/e2e/test_interrupted_runs.py::test_twenty_kills_at_random_instants_lose_nothing",)),
    Bar("D3", "400 of 400 flipped bits found", tests=(
        f"{_CHECKPOINTS}test_single_bit_flips_over_all_files_are_all_found",)),
    Bar("D4", "12 damages: a typed error or the older checkpoint", tests=("tests/unit/checkpoint/test_damage.py",)),
    Bar("D5", "no space, I/O errors: the pointer stays good", tests=(
        f"{_CHECKPOINTS}test_a_rank_that_cannot_write_makes_all_ranks_skip_and_then_stop",
        "tests/unit/checkpoint/test_store.py")),
    Bar("D8", "saved beside training: the same bytes; 100 kill -9 meanwhile: resumed, losses bit-equal", tests=(
        "tests/distributed/test_save_beside_training.py", "tests/unit/checkpoint/test_stages.py")),
    Bar("D9", "two jobs in one folder: the second is refused", tests=("tests/unit/checkpoint/test_lock.py",)),
    Bar("E1", "resumed = uninterrupted, every ZeRO stage", tests=("tests/distributed/test_resume_exact.py",)),
    Bar("E2", "saved under one layout, resumed under another", tests=("tests/distributed/test_resume_layouts.py",)),
    Bar("E3", "order of samples independent of ranks and workers", tests=("tests/unit/data/test_loader.py",)),
    Bar("R1", "kill -9 of a rank: named, training again in 45 s", case=recovery.killed),
    Bar("R2", "SIGSTOP of a rank: named in 20 s, training again in 45 s", case=recovery.stopped),
    Bar("R3a", "a rank sleeps: named in 20 s, training again in 45 s", case=recovery.asleep),
    Bar("R3b", "a rank holds its interpreter: the same", case=recovery.holds_the_interpreter),
    Bar("R3c", "a rank raises: the same", case=recovery.raises),
    Bar("R3d", "a rank ends with code 0: the same", case=recovery.leaves),
    Bar("R4", "a link is dead, then back; a machine is lost; two rehearsed machines", tests=(
        "tests/e2e/test_two_nodes.py",)),
    Bar("R6", "kill -9 of the launcher: no rank left after 10 s", case=recovery.orphans),
    Bar("R7", "20 signals at random instants: exit 75, losses bit-equal", case=recovery.signals),
    Bar("R8", "a step that always fails: ended after 3 restarts, first error quoted", case=recovery.crash_loop),
    Bar("R9a", "a rank with 20 % of a core: named within 20 steps", case=recovery.straggler),
    Bar("R9b", "200 clean steps: no alarm", case=recovery.no_straggler),
    Bar("R11", "dead build locks, a port in use", tests=(
        "tests/unit/rank/test_extensions.py", "tests/unit/launcher/test_cli.py")),
    Bar("R12", "machines or ranks that differ are refused, both named", tests=(
        "tests/unit/launcher/hosts/test_supervise.py", "tests/unit/engine/test_same_start.py")),
    Bar("N1", "a value that is not finite changes no weight", tests=("tests/distributed/test_divergence.py",)),
    Bar("N2", "a loss that jumps: back to a checkpoint, samples passed over, replayed alike", tests=(
        "tests/distributed/test_spikes.py",)),
    Bar("N3", "a flipped bit in a replica: its rank named", tests=("tests/distributed/test_replicas.py",)),
    Bar("H1", "damaged token files: none silent", tests=("tests/unit/data/test_indexed_damage.py",)),
    Bar("H3", "hostile texts: counted or refused", tests=("tests/unit/data_prep/test_hostile.py",)),
    Bar("H4", "pickles in checkpoints: none runs", tests=(
        f"{_CHECKPOINTS}test_a_payload_in_any_file_is_executed_by_no_rank_and_refused_where_it_is_read",)),
    Bar("H6", "hostile hostfiles, words and variables: none runs", tests=(
        "tests/unit/launcher/hosts/test_hostfile.py", "tests/unit/launcher/hosts/test_environment.py")),
    Bar("H8", "500 mutated recipes: typed errors", tests=("tests/unit/config/test_load.py",)),
)  # fmt: skip

BARS = (
    *_BARS,
    Bar(
        "rest",
        "the other long campaigns",
        tests=("tests",),
        options=("-m", "campaign", *(f"--deselect={name}" for bar in _BARS for name in bar.tests)),
    ),
)
