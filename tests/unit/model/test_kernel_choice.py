"""What a job takes from the findings of its trials: the fastest that is right everywhere, the same on every rank."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from unittest.mock import patch

import pytest

from megadeberta.errors import ConfigError
from megadeberta.model.kernel_choice.cache import KernelCache
from megadeberta.model.kernel_choice.choose import AttentionChoice, choose_attention
from megadeberta.model.kernel_choice.findings import (
    ENCODER,
    MASK_DECODER,
    Findings,
    Tried,
    TriedPlan,
    from_json,
    pick,
    slowest,
    to_json,
)
from megadeberta.ops.attention import triton_plan
from megadeberta.ops.attention.backends import BACKENDS, Backend, register_backend
from megadeberta.ops.attention.triton_plan import (
    AttentionPlan,
    KernelPlan,
    LaunchShape,
    default_plan,
    plan_for,
    small_plan,
    variants,
)

SHAPE = LaunchShape("triton", 64, 2, 512, 512, gathered=False, dropout=True, masked=True)
DEFAULT = default_plan(SHAPE)
FAST, SLOW = KernelPlan(64, 64, 4, 2), KernelPlan(32, 32, 4, 1)


@pytest.fixture(autouse=True)
def _kernels_of_one_kind() -> Iterator[None]:
    """So that the findings of these tests have all that auto asks for."""
    with patch.dict(BACKENDS):
        del BACKENDS["gluon"]
        yield


def _tuned(seconds: float, **plans: tuple[KernelPlan, float]) -> Tried:
    tried = tuple(TriedPlan(replace(DEFAULT, **{kernel: plan}), time) for kernel, (plan, time) in plans.items())
    return Tried(seconds, shape=SHAPE, base=DEFAULT, plans=tried)


class _Trial:
    """With findings that are given."""

    def __init__(self, findings: Findings | Exception, wrong: str = "") -> None:
        self.findings, self.wrong = findings, wrong
        self.runs: list[Sequence[str]] = []
        self.checked: list[tuple[str, str]] = []
        self.open = True

    def run(self, backends: Sequence[str]) -> Findings:
        self.runs.append(backends)
        if isinstance(self.findings, Exception):
            raise self.findings
        return self.findings

    def finding(self, role: str, backend: str) -> str:
        self.checked.append((role, backend))
        return self.wrong

    def close(self) -> None:
        self.open = False


def _choose(trial: _Trial, setting: str = "auto", device: str = "cuda", folder: Path | None = None) -> AttentionChoice:
    with patch.dict(triton_plan._CHOSEN):
        choice = choose_attention(
            setting, device, trial=trial, facts=lambda names: {"backends": " ".join(names)}, cache=KernelCache(folder)
        )
    assert not (trial.runs and trial.open)
    return choice


def _encoder(**tried: Tried) -> Findings:
    return {ENCODER: tried}


# From findings to a choice.


def test_the_fastest_backend_that_is_right_is_taken() -> None:
    tried = {"reference": Tried(1.0), "triton": Tried(0.5), "gluon": Tried(0.2), "other": Tried(None, "is wrong")}
    assert pick(tried, "reference").backend == "gluon"
    assert pick(tried | {"gluon": Tried(None, "is wrong")}, "reference").backend == "triton"
    assert pick({"triton": Tried(1.0), "reference": Tried(1.0)}, "reference").backend == "reference"
    failed = Tried(None, "failed")
    assert pick({"reference": failed, "triton": failed}, "reference").backend == "reference"


def test_a_rival_that_does_not_fit_into_memory_is_infinitely_slow() -> None:
    tried = {"reference": Tried(None, "needs more memory than there is", failed=True), "triton": Tried(9.0)}
    assert pick(tried, "reference").backend == "triton"
    line = _choose(_Trial(_encoder(**tried))).line
    assert line == "attention auto: triton on cuda, reference: needs more memory than there is"


def test_every_kernel_gets_its_own_best_tiles() -> None:
    tried = _tuned(1.0, forward=(FAST, 0.9), query=(SLOW, 1.4), key=(FAST, 0.995), table=(SLOW, 0.8))
    chosen = pick({"triton": tried}, "triton")
    # The key kernel would gain half a percent: not more than noise.
    assert chosen.plan == AttentionPlan(FAST, DEFAULT.query, DEFAULT.key, SLOW)
    assert chosen.seconds == pytest.approx(0.72)
    assert chosen.shape == SHAPE


def test_on_different_gpus_the_slowest_decides() -> None:
    one = _encoder(reference=Tried(1.0), triton=_tuned(0.5, forward=(FAST, 0.4), table=(SLOW, 0.3)), gluon=Tried(0.1))
    two = _encoder(reference=Tried(0.7), triton=_tuned(0.6, forward=(FAST, 0.7)), gluon=Tried(None, "needs sm_90"))
    both = slowest([one, two])
    assert both[ENCODER]["reference"].seconds == 1.0
    assert both[ENCODER]["gluon"] == Tried(None, "needs sm_90")
    assert both[ENCODER]["triton"] == _tuned(0.6, forward=(FAST, 0.7))  # the other plan was not tried on both
    assert both == slowest([both, one, two])
    assert pick(both[ENCODER], "reference").backend == "triton"
    missing = slowest([one, _encoder(reference=Tried(1.0))])
    assert pick(missing[ENCODER], "reference").backend == "reference"


def test_findings_survive_the_way_between_ranks() -> None:
    findings = _encoder(reference=Tried(None, "failed"), triton=_tuned(0.5, forward=(FAST, 0.25)))
    assert from_json(to_json(findings)) == findings
    with pytest.raises(ValueError, match="seconds"):
        from_json(to_json(findings).replace('"seconds"', '"second"'))


# The setting.


def test_a_setting_that_leaves_no_choice_tries_nothing() -> None:
    trial = _Trial(RuntimeError("nothing to try"))
    assert _choose(trial, "auto", "cpu") == AttentionChoice("cpu", "cpu", "cpu", "attention auto: cpu on cpu")
    assert _choose(trial, "triton", "cpu").line == "attention triton: triton on cpu"
    assert _choose(trial, "reference").line == "attention reference: reference on cuda"
    assert (trial.runs, trial.checked) == ([], [])
    with pytest.raises(ConfigError, match="'fast' is no attention backend"):
        _choose(trial, "fast")


def test_auto_tries_what_it_takes_without_a_trial_first() -> None:
    trial = _Trial(_encoder(reference=Tried(1.0), triton=Tried(0.5), fast=Tried(2.0)))
    with patch.dict(BACKENDS):
        register_backend(Backend("fast", "a candidate", len, auto_on=("gpu",), needs_trial=True))
        choice = _choose(trial)
    assert trial.runs[0][0] == "reference"
    assert set(trial.runs[0]) >= {"reference", "triton", "fast"}
    assert choice.line == "attention auto: triton on cuda, 2.0x faster than reference, 4.0x faster than fast"


def test_the_line_for_the_log_says_what_was_taken_and_why() -> None:
    findings = {
        ENCODER: {"reference": Tried(1.05), "triton": _tuned(0.5)},
        MASK_DECODER: {"reference": Tried(0.1), "triton": Tried(None, "failed with OutOfResources: shared memory")},
    }
    choice = _choose(_Trial(findings))
    assert (choice.backend, choice.rows_backend) == ("triton", "reference")
    assert choice.taken == "triton, 64x64 tiles 4 warps 1 stage; mask decoder reference"
    assert choice.line == (
        "attention auto: triton on cuda, 64x64 tiles 4 warps 1 stage, 2.1x faster than reference; "
        "mask decoder reference, triton: failed with OutOfResources: shared memory"
    )
    slow = _choose(_Trial(_encoder(reference=Tried(1.0), triton=_tuned(2.0))))
    assert slow.line == "attention auto: reference on cuda, 2.0x faster than triton"


def test_kernels_that_are_missing_are_named() -> None:
    missing = Tried(None, "Triton is not installed (pip install 'megadeberta[gpu]')")
    choice = _choose(_Trial(_encoder(reference=Tried(None), triton=missing)))
    assert choice.line == (
        "attention auto: reference on cuda, triton: Triton is not installed (pip install 'megadeberta[gpu]')"
    )


def test_of_a_backend_that_is_named_only_the_tiles_are_tried() -> None:
    trial = _Trial(_encoder(triton=_tuned(1.0, forward=(FAST, 0.5))))
    with patch.dict(triton_plan._CHOSEN):
        choice = choose_attention("triton", "cuda", trial=trial, facts=lambda names: {}, cache=KernelCache(None))
        assert plan_for(SHAPE) == replace(DEFAULT, forward=FAST)
        assert plan_for(replace(SHAPE, dropout=False, masked=False)).forward == FAST  # in validation
        assert plan_for(replace(SHAPE, keys=1024)) == DEFAULT
    assert trial.runs == [["triton"]]
    assert choice.line.startswith("attention triton: triton on cuda, forward 64x64 tiles 4 warps 2 stages, query 64x64")


def test_the_tiles_of_the_mask_decoder_hold_for_any_number_of_target_rows() -> None:
    shape = replace(SHAPE, queries=80, gathered=True)
    with patch.dict(triton_plan._CHOSEN):
        triton_plan.choose_plan(shape, replace(DEFAULT, forward=FAST))
        assert plan_for(replace(shape, queries=88)).forward == FAST
        assert plan_for(replace(shape, queries=512, gathered=False)) == DEFAULT


# Failures.


def test_a_trial_that_breaks_leaves_the_reference_and_is_tried_again(tmp_path: Path) -> None:
    for _ in range(2):
        trial = _Trial(RuntimeError("CUDA error\nand more"))
        choice = _choose(trial, folder=tmp_path)
        assert (choice.backend, len(trial.runs)) == ("reference", 1)
        assert "triton: failed with RuntimeError: CUDA error" in choice.line
        assert choice.line.endswith("; to be tried again by the next start")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("setting", "taken"), [("auto", "reference"), ("triton", "triton")])
def test_a_choice_that_is_wrong_on_this_device_is_said(
    caplog: pytest.LogCaptureFixture, setting: str, taken: str
) -> None:
    trial = _Trial(_encoder(reference=Tried(1.0), triton=Tried(0.5)), wrong="the output is nan away")
    choice = _choose(trial, setting)
    assert trial.checked == [(ENCODER, "triton")]
    assert choice.backend == taken
    assert "attention: triton in the encoder: the output is nan away on rank 0" in caplog.text
    assert ("the output is nan away" in choice.line) == (setting == "auto")


# The cache.


def test_the_second_start_reads_what_the_first_one_found_and_checks_it(tmp_path: Path) -> None:
    findings = _encoder(reference=Tried(1.0), triton=_tuned(0.5, forward=(FAST, 0.4)))
    first = _choose(_Trial(findings), folder=tmp_path)
    (path,) = tmp_path.iterdir()
    trial = _Trial(RuntimeError("must not run"))
    second = _choose(trial, folder=tmp_path)
    assert trial.runs == []
    # By the first rank before the others, which then find all compiled; and by each rank.
    assert trial.checked == [(ENCODER, "triton")] * 2
    assert first.line.removesuffix(f"; kept in {path}") == second.line.removesuffix(f"; read from {path}")
    assert second.line.endswith(f"; read from {path}")


def test_a_cached_choice_among_other_backends_is_tried_again(tmp_path: Path) -> None:
    findings = _encoder(reference=Tried(1.0), triton=Tried(0.5))
    _choose(_Trial(findings), folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace('"reference": {', '"other": {'))
    trial = _Trial(findings)
    assert _choose(trial, folder=tmp_path).backend == "triton"
    assert len(trial.runs) == 1


@pytest.mark.parametrize("head_size", [64, 128])
def test_other_plans_differ_in_one_kernel(head_size: int) -> None:
    shape = replace(SHAPE, head_size=head_size)
    for base in (default_plan(shape), small_plan(shape)):
        assert base is not None
        plans = variants(shape, base)
        assert len(set(plans)) == len(plans) > 4
        for plan in plans:
            assert sum(own != other for own, other in zip(astuple(plan), astuple(base), strict=True)) == 1
        assert len(variants(replace(shape, gathered=True), base)) < len(plans)  # they take little of a step
