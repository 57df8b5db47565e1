"""Every private name of DeepSpeed, torch and others that this project uses: there, and as it is used.

The list is the contract with DeepSpeed 0.19.8 and torch 2.13. When an upgrade fails here, read the lines that the
message names: each has its reason, and most were written around one version's behaviour. Private is what begins with an
underscore, and what is public but replaced at run time.
"""

import ast
import functools
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[3]
SHIPPED = ("megadeberta", "launcher", "data_prep")
FOREIGN = ("deepspeed", "torch")
DOCUMENTED = {"_exit"}  # of os: private by its name alone


@dataclass(frozen=True)
class Private:
    """``name`` of ``owner``, a module or a class.

    parameters: of a function or a method; None for what is no function. set_there: the owner's code sets it on its own
    objects or on others. key: what the value must hold.
    """

    name: str
    owner: str
    parameters: tuple[str, ...] | None = None
    set_there: bool = False
    key: str | None = None

    def __str__(self) -> str:
        call = "" if self.parameters is None else f"({', '.join(self.parameters)})"
        return f"{self.owner}.{self.name}{call}"


_PIPE, _STAGE_3 = "deepspeed.runtime.pipe", "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3"
_STAGE_1_AND_2, _BF16 = "deepspeed.runtime.zero.stage_1_and_2", "deepspeed.runtime.bf16_optimizer"
_C10D = "torch.distributed.distributed_c10d"

CONTRACT = (
    Private("_do_optimizer_sanity_check", "deepspeed.runtime.engine.DeepSpeedEngine", ("self", "basic_optimizer")),
    Private("_exec_schedule", f"{_PIPE}.engine.PipelineEngine", ("self", "pipe_schedule")),
    Private("_INSTRUCTION_MAP", f"{_PIPE}.engine.PipelineEngine"),
    Private("_compute_loss", f"{_PIPE}.engine.PipelineEngine", set_there=True),
    Private("_allocate_or_extend_buffers", f"{_PIPE}.engine.PipelineEngine", ("self", "idx", "shape", "dtype")),
    Private("_index_tied_modules", f"{_PIPE}.module.PipelineModule", ("self",)),
    Private("_synchronize_tied_weights", f"{_PIPE}.module.PipelineModule", ("self",)),
    Private("scaled_global_norm", f"{_STAGE_1_AND_2}.DeepSpeedZeroOptimizer", ("self", "norm_type")),
    Private("_global_grad_norm", f"{_STAGE_1_AND_2}.DeepSpeedZeroOptimizer", set_there=True),
    Private("_zero_padding", _STAGE_1_AND_2, set_there=True),
    Private("_hp_mapping", _STAGE_1_AND_2, set_there=True),
    Private("_hp_mapping", _BF16, set_there=True),
    Private("_hp_grad", _BF16, set_there=True),
    Private("update_hp_grads", f"{_BF16}.BF16_Optimizer", ("self", "clear_lp_grads")),
    Private("get_grads_for_norm", f"{_BF16}.BF16_Optimizer", ("self", "for_clipping")),
    Private("_update_hp_grad", f"{_BF16}.BF16_Optimizer", ("self", "lp", "group_idx", "param_idx", "clear_lp_grads")),
    Private("_get_param_partition_rank", _STAGE_3, ("self", "param")),
    Private("_swappable_optimizer_subgroup", _STAGE_3, ("self", "sub_group_id")),
    Private("_optimizer_states_and_gradient_swap_in", _STAGE_3, ("self", "sub_group_id", "timer_names")),
    Private("_writeback_swap_state", _STAGE_3, ("self", "sub_group_id", "write_opt_state", "write_gradients")),
    # Behind a decorator that hides its parameters: self, sub_group_id.
    Private("_reassign_or_swap_out_partitioned_parameters", _STAGE_3, ("args", "kwargs")),
    Private("__compatible_ops__", "deepspeed.ops", key="deepspeed_shm_comm"),
    Private("_world", _C10D),
    Private("_get_default_store", _C10D, ()),
    Private("_resolve_process_group", _C10D),
    Private("_get_backend", "torch.distributed.ProcessGroup"),
    Private("_set_pg_timeout", _C10D, ("timeout", "group")),
    Private("_softmax_backward_data", "torch", ("grad_output", "output", "dim", "input_dtype")),
    Private("_MultiProcessingDataLoaderIter", "torch.utils.data.dataloader"),
    Private("_shutdown_workers", "torch.utils.data.dataloader._MultiProcessingDataLoaderIter", ("self",)),
    Private("_workers", "torch.utils.data.dataloader._MultiProcessingDataLoaderIter", set_there=True),
    Private("_run_exitfuncs", "atexit"),
    Private("_next_step", "trackio.run.Run", set_there=True),
)


@pytest.mark.parametrize("private", CONTRACT, ids=str)
def test_private_name_is_there_and_as_it_is_used(private: Private) -> None:
    owner = _resolve(private.owner)
    found = f"{private.owner.split('.')[0]} has no {private} any more; read {', '.join(sorted(_uses()[private.name]))}"
    if private.set_there:
        assert private.name in _attributes_set_by(owner), found
        return
    assert hasattr(owner, private.name), found
    value = getattr(owner, private.name)
    if private.parameters is not None:
        assert _parameters(value, private.name) == private.parameters, found
    assert private.key is None or private.key in value, found


def test_default_group_table_has_the_groups() -> None:
    """``_world.pg_map``, which needs no process group to be read."""
    assert isinstance(_resolve(_C10D)._world.pg_map, dict)


def test_the_contract_lists_the_private_names_of_the_code_and_no_others() -> None:
    listed = {private.name for private in CONTRACT}
    missing = {name: files for name, files in _uses().items() if name not in listed}
    assert not missing, f"private names of others that CONTRACT does not list: {missing}"
    assert listed - set(_uses()) == set(), "listed, but no longer used"


@pytest.mark.parametrize(
    "code",
    [
        "engine._secret()",
        "engine._secret = 1",
        "getattr(engine, '_secret', None)",
        "Namespace(_secret=1)",
        "from deepspeed.runtime import _secret",
        "import torch._secret.api",
        "engine._Own_secret; engine._secret",
        "class Own:\n    def go(self):\n        self._secret()",
        "engine.optimizer._secret = functools.partial(f)",
    ],
)
def test_a_private_name_is_seen_however_it_is_written(code: str) -> None:
    assert "_secret" in set(_private_names(ast.parse(code), package=set()))


def test_a_replaced_method_and_one_that_overrides_a_private_one_are_seen() -> None:
    replaced = ast.parse("optimizer.norm = functools.partial(ours, optimizer)")
    assert set(_private_names(replaced, package=set())) == {"norm"}
    overriding = ast.parse(
        "from torch import nn\nclass Own(nn.Module):\n    def _apply(self): ...\n    def _own(self): ..."
    )
    assert set(_private_names(overriding, package=set())) == {"_apply"}


def _resolve(path: str) -> Any:
    """The module or class of that name."""
    module, _, name = path.rpartition(".")
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        return getattr(importlib.import_module(module), name)


def _parameters(function: Any, name: str) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except ValueError:  # an operator of torch
        schema = getattr(torch.ops.aten, name).default._schema
        return tuple(argument.name for argument in schema.arguments)


def _attributes_set_by(owner: Any) -> set[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}


@functools.cache
def _uses() -> dict[str, set[str]]:
    """Private names of others in the shipped code, each with ``file:line``."""
    paths = [path for folder in SHIPPED for path in sorted((ROOT / folder).rglob("*.py"))]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    package = {name for tree in trees.values() for name in _own_names(tree)}
    found: dict[str, set[str]] = {}
    for path, tree in trees.items():
        for name, line in _private_names(tree, package=package).items():
            found.setdefault(name, set()).add(f"{path.relative_to(ROOT)}:{line}")
    return found


def _private_names(tree: ast.Module, *, package: set[str]) -> dict[str, int]:
    """Names that begin with an underscore and are not this file's own, and methods of others that are replaced.

    package: private names that the whole package defines: ``self`` may inherit them.
    """
    own = _own_names(tree)
    found: dict[str, int] = {}
    for node in ast.walk(tree):
        for name, is_own in _names_of(node, own=own, package=package | own):
            if not is_own and name not in DOCUMENTED:
                found.setdefault(name, node.lineno)
        if isinstance(node, ast.ClassDef):
            found |= {method.name: method.lineno for method in _overridden(node, tree)}
    return found


def _names_of(node: ast.AST, *, own: set[str], package: set[str]) -> Iterator[tuple[str, bool]]:
    """Private names in one node, and whether they are ours."""
    if isinstance(node, ast.Attribute) and _is_private(node.attr):
        yield node.attr, node.attr in (package if _is_self(node.value) else own)
    elif isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr", "setattr", "delattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and _is_private(str(name.value)):
                yield str(name.value), name.value in own
        yield from ((word.arg, False) for word in node.keywords if word.arg is not None and _is_private(word.arg))
    elif isinstance(node, ast.Import | ast.ImportFrom):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        parts = [part for text in [*modules, *(alias.name for alias in node.names)] for part in text.split(".")]
        yield from ((part, False) for part in parts if _is_private(part))
    elif isinstance(node, ast.Assign) and _is_replacement(node.value):
        yield from (
            (target.attr, False)
            for target in node.targets
            if isinstance(target, ast.Attribute) and not _is_self(target.value)
        )


def _is_private(name: str) -> bool:
    return name == "__compatible_ops__" or (name.startswith("_") and not name.startswith("__") and name != "_")


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _is_replacement(node: ast.AST) -> bool:
    is_partial = isinstance(node, ast.Call) and ast.unparse(node.func) in ("functools.partial", "partial")
    return is_partial or isinstance(node, ast.Lambda)


def _own_names(tree: ast.Module) -> set[str]:
    """What the file defines: functions, classes, variables, and attributes of ``self``."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            names.add(node.attr)
    return names


def _overridden(node: ast.ClassDef, tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Private methods of a class of ours that a base of DeepSpeed or torch has too."""
    modules = {
        alias.asname or alias.name: f"{statement.module}.{alias.name}"
        for statement in tree.body
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").split(".")[0] in FOREIGN
        for alias in statement.names
    } | {name: name for name in FOREIGN}
    for base in node.bases:
        first, *rest = ast.unparse(base).split("[")[0].split(".")
        if first in modules:
            foreign = _resolve(".".join([modules[first], *rest]))
            methods = (item for item in node.body if isinstance(item, ast.FunctionDef))
            yield from (method for method in methods if _is_private(method.name) and hasattr(foreign, method.name))
