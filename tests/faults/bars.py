"""The bars of reliability by their ids: what each says, and what shows it."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults import recovery, surroundings
from tests.faults.bench import Bench
from tests.faults.recovery import Found

_CHECKPOINTS = "tests/distributed/test_checkpoint_faults.py::"
_STORE = "tests/unit/checkpoint/test_store.py::"
_DAMAGE = "tests/unit/checkpoint/test_damage.py::"
_LAUNCHERS = "tests/e2e/test_launchers.py::"
_MISTAKES = "tests/e2e/test_mistakes.py::"
_LOADER = "tests/unit/data/test_loader.py::"
_LOCAL = "tests/unit/launcher/test_local.py::"


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
    Bar("D2", "50 kill -9 of everything: resumed, losses bit-equal", tests=(
        "tests/e2e/test_interrupted_runs.py::test_fifty_kills_at_random_instants_lose_nothing",)),
    Bar("D3", "400 of 400 flipped bits found", tests=(
        f"{_CHECKPOINTS}test_single_bit_flips_over_all_files_are_all_found",)),
    Bar("D4", "12 damages: a typed error or the older checkpoint", tests=("tests/unit/checkpoint/test_damage.py",)),
    Bar("D5", "no space, I/O errors: the pointer stays good", tests=(
        f"{_CHECKPOINTS}test_a_rank_that_cannot_write_makes_all_ranks_skip_and_then_stop",
        "tests/unit/checkpoint/test_store.py")),
    Bar("D6", "a full disk: found before it is written to, or exit 79", tests=(
        f"{_STORE}test_too_little_free_space_is_found_before_writing",
        f"{_MISTAKES}test_full_disk_stops_with_79_and_leaves_no_checkpoint")),
    Bar("D7", "everything is synced before the name that shows it", tests=(
        f"{_STORE}test_everything_is_on_the_disk_before_the_name_that_shows_it",)),
    Bar("D8", "saved beside training: the same bytes; 100 kill -9 meanwhile: resumed, losses bit-equal", tests=(
        "tests/distributed/test_save_beside_training.py", "tests/distributed/test_slow_disk.py",
        "tests/unit/checkpoint/test_stages.py")),
    Bar("D9", "two jobs in one folder: the second is refused; kills while old checkpoints are deleted", tests=(
        "tests/unit/checkpoint/test_lock.py",
        f"{_STORE}test_a_kill_in_the_deletion_of_an_old_checkpoint_leaves_nothing_that_looks_whole")),
    Bar("E1", "resumed = uninterrupted, every ZeRO stage", tests=("tests/distributed/test_resume_exact.py",)),
    Bar("E2", "saved under one layout, resumed under another", tests=("tests/distributed/test_resume_layouts.py",)),
    Bar("E3", "order of samples independent of ranks and workers", tests=("tests/unit/data/test_loader.py",)),
    Bar("E4", "masks depend on seed, epoch and sample alone", tests=(
        f"{_LOADER}test_every_layout_and_resume_point_gives_the_same_samples_and_masks",)),
    Bar("E5", "fp16's loss scale across a resume", tests=("tests/distributed/test_resume_exact.py",)),
    Bar("E6", "another model, data or tokenizer is refused with what differs", tests=(
        f"{_DAMAGE}test_another_run_is_refused_with_the_fields_that_differ",
        "tests/distributed/test_resume_exact.py::test_checkpoint_of_another_model_is_refused_with_the_fields_that_differ")),
    Bar("E7", "ranks that see different checkpoints all stop", tests=(
        f"{_DAMAGE}test_a_rank_that_sees_another_manifest_stops_all_ranks",
        f"{_DAMAGE}test_a_rank_that_does_not_see_a_file_stops_all_ranks")),
    Bar("R1", "kill -9 of a rank: named, training again in 45 s", case=recovery.killed),
    Bar("R2", "SIGSTOP of a rank: named in 20 s, training again in 45 s", case=recovery.stopped),
    Bar("R3a", "a rank sleeps: named in 20 s, training again in 45 s", case=recovery.asleep),
    Bar("R3b", "a rank holds its interpreter: the same", case=recovery.holds_the_interpreter),
    Bar("R3c", "a rank raises: the same", case=recovery.raises),
    Bar("R3d", "a rank ends with code 0: the same", case=recovery.leaves),
    Bar("R4", "a link is dead, then back; a machine is lost; two rehearsed machines", tests=(
        "tests/e2e/test_two_nodes.py",)),
    Bar("R5", "a machine is lost for good: a spare one takes its place, or fewer go on",
        case=surroundings.fewer_machines),
    Bar("R6", "kill -9 of the launcher: no rank left after 10 s", case=recovery.orphans),
    Bar("R7", "20 signals at random instants: exit 75, losses bit-equal", case=recovery.signals),
    Bar("R8", "a step that always fails: ended after 3 restarts, first error quoted", case=recovery.crash_loop),
    Bar("R9a", "a rank with 20 % of a core: named within 20 steps", case=recovery.straggler),
    Bar("R9b", "200 clean steps: no alarm", case=recovery.no_straggler),
    Bar("R10", "a memory limit is named, and the run not started for ever", case=surroundings.out_of_memory),
    Bar("R11", "dead build locks, a port in use", tests=(
        "tests/unit/rank/test_extensions.py", "tests/unit/launcher/test_cli.py")),
    Bar("R12", "machines or ranks that differ are refused, both named", tests=(
        "tests/unit/launcher/hosts/test_supervise.py", "tests/unit/engine/test_same_start.py",
        f"{_LAUNCHERS}test_a_rank_that_was_given_other_settings_is_refused_under_every_launcher")),
    Bar("R13", "half an hour of random faults: 95 % recovered, losses bit-equal", case=surroundings.soak),
    Bar("R13b", "ten minutes of it over two rehearsed machines", case=surroundings.soak_of_two_machines),
    Bar("N1", "a value that is not finite changes no weight, and is passed over up to a limit", tests=(
        "tests/distributed/test_divergence.py", "tests/distributed/test_steps_passed_over.py")),
    Bar("N2", "a loss that jumps: back to a checkpoint, samples passed over, replayed alike", tests=(
        "tests/distributed/test_spikes.py",)),
    Bar("N3", "a flipped bit in a replica: its rank named", tests=("tests/distributed/test_replicas.py",)),
    Bar("N4", "comparing replicas moves at most 1 % of the bytes", tests=("tests/unit/engine/test_replica_cost.py",)),
    Bar("H1", "damaged token files: none silent", tests=("tests/unit/data/test_indexed_damage.py",)),
    Bar("H2", "token files cut under their reader: an error", tests=(
        "tests/unit/data/test_indexed_damage.py::test_a_bin_cut_under_the_reader_is_an_error_that_names_it",
        f"{_LOADER}test_a_shard_cut_while_in_use_is_one_clear_error")),
    Bar("H3", "hostile texts: counted or refused", tests=("tests/unit/data_prep/test_hostile.py",)),
    Bar("H4", "pickles in checkpoints: none runs", tests=(
        f"{_CHECKPOINTS}test_a_payload_in_any_file_is_executed_by_no_rank_and_refused_where_it_is_read",)),
    Bar("H5", "damaged safetensors headers: none silent", tests=("tests/unit/convert/test_bad_weights.py",)),
    Bar("H6", "200 hostile lines of hostfiles, words and variables: none runs", tests=(
        "tests/unit/launcher/hosts/test_hostile_lines.py",
        "tests/unit/launcher/hosts/test_hostfile.py", "tests/unit/launcher/hosts/test_environment.py")),
    Bar("H7", "secrets reach no log, no command line, no checkpoint", tests=(
        "tests/unit/config/test_redact.py", "tests/unit/observability/test_logs.py",
        "tests/unit/launcher/hosts/test_environment.py::test_secrets_reach_neither_the_launcher_nor_the_machines")),
    Bar("H8", "500 mutated recipes: typed errors", tests=("tests/unit/config/test_load.py",)),
    Bar("H9", "300 damaged tokenizer files: a typed error or a whole vocabulary", tests=(
        "tests/unit/data/test_tokenizer.py::test_300_damaged_files_give_a_data_error_or_a_whole_vocabulary",)),
    Bar("H10", "300 strangers on the port of the ranks: nothing happens", case=surroundings.garbage),
    Bar("H11", "planted links are replaced or refused, their targets untouched", tests=(
        "tests/unit/test_storage.py", "tests/unit/checkpoint/test_lock.py", "tests/unit/observability/test_metrics.py",
        "tests/unit/observability/test_tracker.py", "tests/unit/engine/test_phases.py",
        "tests/unit/checkpoint/test_shares.py",
        f"{_STORE}test_a_link_planted_at_a_hidden_name_is_removed_and_its_target_untouched")),
    Bar("H12", "mistakes of users: one line, the code that is documented", tests=("tests/e2e/test_mistakes.py",)),
    Bar("S1", "a save and a resume of 1 024 and 4 096 ranks: the work of one", tests=(
        "tests/unit/checkpoint/test_many_ranks.py",)),
    Bar("S2", "the start of a rank of 10B parameters: its host holds rows and no model", tests=(
        "tests/distributed/test_start_memory.py",)),
    Bar("S3", "plans: stages, memory, 10 000 GPUs, tables at 80 and 120 columns", tests=(
        "tests/unit/plan/test_timing.py", "tests/unit/plan/test_cli.py")),
    Bar("F1", "a lost rank: the run starts again, the sbatch script goes back into the queue", tests=(
        "tests/e2e/test_interrupted_runs.py::test_run_that_loses_a_rank_starts_again_by_itself",
        "tests/unit/launcher/test_restart.py", "tests/unit/launcher/test_slurm.py")),
    Bar("F2", "a data worker that is killed, fails or hangs ends the run, and no process is left", tests=(
        f"{_LOADER}test_a_killed_worker_is_one_clear_error",
        f"{_LOADER}test_a_worker_that_fails_or_hangs_ends_the_run_and_leaves_no_process",
        f"{_LOADER}test_workers_ignore_the_signals_of_the_job_and_leave_with_the_rank")),
    Bar("F3", "start, step, save and validation have deadlines of their own; who hangs is named with stacks", tests=(
        "tests/unit/launcher/test_heartbeats.py",
        f"{_LOCAL}test_rank_that_hangs_is_named_with_its_stack_and_all_are_ended")),
    Bar("F4", "an old checkpoint that cannot be deleted keeps no save from succeeding", tests=(
        f"{_STORE}test_what_cannot_be_deleted_keeps_no_save_from_succeeding",)),
    Bar("F5", "ranks that were given other settings are refused under torchrun, mpiexec and srun", tests=(
        f"{_LAUNCHERS}test_a_rank_that_was_given_other_settings_is_refused_under_every_launcher",)),
    Bar("F6", "a value that is not finite is in no checkpoint, and an older one is taken where it is", tests=(
        "tests/distributed/test_resume_exact.py::test_a_weight_that_is_not_finite_is_never_saved_and_never_resumed_from",
    )),
    Bar("F7", "checkpoints that vanished stop the start, and the log stays", tests=(
        f"{_MISTAKES}test_checkpoints_that_vanished_stop_the_start_and_the_log_stays",
        "tests/unit/observability/test_resume_note.py")),
    Bar("F8", "slow ranks, spikes and unequal replicas are found; every k-th checkpoint stays", tests=(
        "tests/unit/launcher/test_stragglers.py", "tests/distributed/test_spikes.py",
        "tests/distributed/test_replicas.py", f"{_STORE}test_every_kth_checkpoint_stays_beside_the_last_ones")),
    Bar("F9", "a line of the log that cannot be written waits, and training goes on", tests=(
        "tests/unit/observability/test_metrics.py",)),
    Bar("F10", "a damaged checkpoint is not kept in the place of a sound one", tests=(
        f"{_STORE}test_a_damaged_checkpoint_is_not_kept_in_place_of_a_sound_one",)),
    Bar("F11", "secrets and credentials in addresses are in no manifest, command line or log", tests=(
        "tests/unit/config/test_redact.py", "tests/unit/observability/test_logs.py")),
    Bar("F12", "names of variables run nothing", tests=(
        "tests/unit/launcher/hosts/test_environment.py::"
        "test_variable_whose_name_a_shell_would_run_is_refused", "tests/unit/launcher/hosts/test_hostile_lines.py")),
    Bar("F13", "signals: while nobody reads, while a rank hangs, and before the ranks listen", tests=(
        f"{_LOCAL}test_output_that_nobody_reads_stops_neither_ranks_nor_signals",
        f"{_LOCAL}test_signal_ends_a_job_with_a_stopped_rank_in_seconds",
        f"{_LOCAL}test_signal_before_the_ranks_listen_is_no_failure")),
    Bar("F14", "stray files, named errors, changed rates, build locks, overrides, limits of memory and disk", tests=(
        f"{_DAMAGE}test_a_hidden_file_of_a_file_system_discards_no_checkpoint",
        f"{_STORE}test_a_failed_save_warns_and_names_file_and_cause",
        f"{_STORE}test_an_fsync_that_fails_is_told_with_its_file",
        "tests/unit/checkpoint/test_rate_jump.py", "tests/unit/observability/test_resume_note.py",
        "tests/unit/rank/test_extensions.py", "tests/unit/launcher/test_memory_limit.py",
        "tests/unit/launcher/test_slurm.py::test_script_asks_for_the_layout_and_quotes_the_command",
        f"{_STORE}test_too_little_free_space_is_found_before_writing", "tests/unit/preflight/test_run.py",
        "tests/unit/data_prep/test_verify.py::test_a_flipped_bit_is_found",
        "tests/unit/config/test_load.py::test_override_of_the_wrong_form_shows_the_right_one")),
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
