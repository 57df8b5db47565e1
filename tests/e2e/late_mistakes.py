"""More of ``mistakes.py``: what a user types who has a run, or means to start one from something that is none."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from tests.data_fixtures import SOTU
from tests.e2e.mistakes import DEBERTA, Case, as_recipe, override, words
from tests.e2e.tiny_run import write_recipe
from tests.unit.convert.small_models import small_config, small_model, write_checkpoint

STEP = 50


def _checkpoint(folder: Path, prepared: Path, **sections: object) -> Path:
    """A run's only checkpoint, without a training."""
    config, spm = small_config(), prepared / "tokenizer" / "spm.model"
    given = {
        "data": {"folder": str(prepared), "sequence_length": 8},
        "schedule": {"name": "constant", "warmup_steps": 10},
        "training": {"steps": 1000, "seed": 7, "output_dir": str(folder / "done")},
    }
    return write_checkpoint(folder / "done", small_model(config), config, spm, step=STEP, **given | sections)


def done(line: str, **sections: object) -> Case:
    """A command; RUN is the folder of a run, STEP that of its checkpoint, SET that of its token files."""

    def case(folder: Path, prepared: Path) -> list[str]:
        checkpoint = _checkpoint(folder, prepared, **sections)
        names = {"RUN": str(folder / "done"), "STEP": str(checkpoint), "SET": str(prepared)}
        return [names.get(word, word.replace("SET/", f"{prepared}/")) for word in line.split()]

    return case


CONFIGURATION = {
    "m/config.json": json.dumps(
        {
            "model_type": "deberta-v2",
            "vocab_size": 64,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        }
    )
}
"""A model's settings without its weights."""


def _damaged_run(line: str, damage: Callable[[Path], object]) -> Case:
    """A command on a run whose only checkpoint is damaged."""

    def case(folder: Path, prepared: Path) -> list[str]:
        arguments = done(line)(folder, prepared)
        damage(folder / "done" / "checkpoints" / f"step-{STEP}")
        return arguments

    return case


def _moved(folder: Path) -> dict[str, object]:
    """The data section of a run whose token files are no longer there."""
    return {"train": str(folder / "gone/train"), "valid": str(folder / "gone/valid"), "sequence_length": 8}


def with_files(files: dict[str, str], line: str) -> Case:
    """A command in a folder with these files."""

    def case(folder: Path, prepared: Path) -> list[str]:
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content)
        return line.split()

    return case


def _start(line: str) -> Case:
    """A training with this override, in which RUN is the folder of another run."""

    def case(folder: Path, prepared: Path) -> list[str]:
        checkpoint = _checkpoint(folder, prepared)
        named = line.replace("RUN", str(checkpoint.parents[1])).replace("STEP", str(checkpoint))
        return override(named)(folder, prepared)

    return case


_BERT = {"bert/config.json": json.dumps({"model_type": "bert"}), "bert/model.safetensors": ""}
_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
_TABLE = {"table/train.csv": "text,label\nfine,1\nbad,0\n", "table/dev.csv": "text,label\nfine,1\nbad,0\n"}

LATE_MISTAKES: dict[str, tuple[Case, str]] = {
    "task that does not exist": (words("finetune sst-3 --data d --model m"), r"no task 'sst-3'; did you mean sst-2"),
    "task without data": (words("finetune sst-2 --model m"), r"finetune sst-2: give --data"),
    "labelled data that do not exist": (words("finetune sst-2 --data nowhere --model m"), r"--data nowhere: no such"),
    "model to tune that is no DeBERTa": (
        with_files(_TABLE | _BERT, "finetune classification --data table --model bert"),
        r"model_type is 'bert', which is no DeBERTa",
    ),
    "model to tune that is a recipe": (
        with_files(_TABLE | {"recipe.json": "{}"}, "finetune classification --data table --model recipe.json"),
        r"recipe.json: is no file of weights",
    ),
    "axis that does not exist": (words("finetune sst-2 --data d --model m --grid lrs"), r"'lrs' is none of lr, batch"),
    "cool-down of nothing": (words("cooldown nowhere --output o --steps 5"), r"nowhere: holds no checkpoint"),
    "cool-down without steps": (words("cooldown runs/x --output o"), r"Missing option '--steps'"),
    "cool-down into its own run": (done("cooldown RUN --output RUN --steps 5"), r"holds a run already; choose a new"),
    "cool-down of a rate that decays already": (
        done("cooldown STEP --output o --steps 5", schedule={"name": "linear", "warmup_steps": 10}),
        r"would begin with a jump; give a checkpoint of the constant part",
    ),
    "extension to fewer tokens": (
        done("extend RUN --output o --steps 5 --length 8"),
        r"--length 8: the run was trained on 8 tokens per sequence; give more",
    ),
    "extension that ends within its warm-up": (
        done("extend RUN --output o --steps 10 --length 16"),
        r"--steps 10 ends within the warm-up of the old run, 10 steps; give --warmup-steps below",
    ),
    "extension of token files": (done("extend SET --output o --steps 5 --length 64"), r"holds no checkpoint"),
    "average of one checkpoint": (
        done("checkpoint average RUN averaged"),
        r"has 1 checkpoints, an average needs 2; checkpoint.keep_last and keep_every",
    ),
    "average of a checkpoint": (done("checkpoint average STEP averaged"), r"has 0 checkpoints, an average needs 2"),
    "pairs that do not exist": (done("evaluate RUN --blimp nowhere.jsonl"), r"nowhere.jsonl: cannot be read"),
    "pairs that are a text": (
        lambda f, p: [*done("evaluate RUN --blimp")(f, p), str(SOTU)],
        r"sotu.txt: line 1: is no pair of BLiMP with UID, field",
    ),
    "pairs and a text": (done("evaluate RUN --blimp b --text t"), r"leave --data and --text to a second command"),
    "evaluation on a folder": (done("evaluate RUN --data SET"), r"is a folder, did you mean .*/valid\?"),
    "evaluation on a text that does not exist": (done("evaluate RUN --text none.txt"), r"none.txt: cannot be read"),
    "evaluation of token files": (done("evaluate SET"), r"holds no checkpoint; give the training.output_dir"),
    "restarts below none": (words("launch quickstart --restarts -1"), r"'--restarts': Input should be greater"),
    "restarts that are no number": (words("launch quickstart --restarts many"), r"'--restarts': .*valid integer"),
    "tracker that is no tracker": (
        override('logging.trackers=["tensorboard"]'),
        r"its place is logging.tensorboard, which is on",
    ),
    "number that YAML reads as a text": (
        as_recipe("extends: quickstart\noptimizer:\n  lr: fast\n", name="r.yaml"),
        r"optimizer.lr='fast'",
    ),
    "two documents in YAML": (
        as_recipe("extends: quickstart\n---\nname: x\n", name="r.yaml"),
        r"r.yaml:2: not valid YAML: but found another document",
    ),
    "section of YAML that is not indented": (
        as_recipe("extends: quickstart\noptimizer:\nlr: 1.0e-3\n", name="r.yaml"),
        r"r.yaml: optimizer=None: must be a section with keys of its own; indent them",
    ),
    "raw text in place of the data": (override(f"data.folder={SOTU}"), r"sotu.txt is a file and no folder that"),
    "folder of the data that is a run": (
        _start("data.folder=RUN"),
        r"data.train=.*done/train: train.bin, .idx and .json do not exist",
    ),
    "weights that are a run": (_start("training.init_from=RUN"), r"is a run of ours.*training.continue_from takes"),
    "weights that are token files": (
        lambda f, p: override(f"training.init_from={p}")(f, p),
        r"init_from=.*: holds no weights; give what `megadeberta convert import` wrote",
    ),
    "run to go on from in place of its checkpoint": (
        _start("training.continue_from=RUN"),
        r"continue_from=.*: is a run; give .*step-50$",
    ),
    "token files into the folder of a run": (
        done(f"prep {SOTU} --vocab-size 300 --output RUN"),
        r"is the output of a training, with its checkpoints; give token files a folder of their own",
    ),
    "import of a BERT": (with_files(_BERT, "convert import bert out"), r"model_type is 'bert'; only 'deberta"),
    "masks of a BERT": (with_files(_BERT, "fill-mask bert [MASK]"), r"model_type is 'bert'; only 'deberta"),
    "export into a folder that is in use": (done("convert export RUN RUN"), r"not empty; choose another folder"),
    "check of what is no export": (words("convert check nowhere"), r"nowhere/config.json: is missing; give a folder"),
    "no guesses": (done("fill-mask RUN [MASK] --top-k 0"), r"'--top-k': Input should be greater than or equal to 1"),
    "recipe of a run in place of the run": (
        lambda f, p: ["cooldown", str(write_recipe(f, p)), "--output", "o", "--steps", "5"],
        r"recipe.json: holds no checkpoint; give the training.output_dir of a run",
    ),
    "configuration of a model in place of a recipe": (
        with_files(_BERT, "train bert/config.json"),
        r"is no recipe.*`megadeberta convert import` of its folder",
    ),
    "number of 23 digits": (override("model.vocab_size=1" + "0" * 22), r"model.vocab_size has 23 digits"),
    "token files in place of a text": (
        done("prep SET --vocab-size 300 --output o"),
        r"is a set of token files.*no text",
    ),
    "run in place of a text": (
        done("prep RUN --vocab-size 300 --output o"),
        r"is the output of a training, and no text",
    ),
    "token files into the folder of the text": (
        with_files({"texts/a.txt": "words"}, "prep texts --vocab-size 300 --output texts"),
        r"--output=texts is the folder of the text itself",
    ),
    "run into the folder of its token files": (
        lambda f, p: override(f"training.output_dir={p}")(f, p),
        r"output_dir=.* holds a set of token files; give the run a folder of its own",
    ),
    "tokenizer of the hub": (
        lambda f, p: ["prep", str(SOTU), "--tokenizer", "microsoft/deberta-v3-base", "--output", "o"],
        r"`hf download microsoft/deberta-v3-base --local-dir FOLDER`",
    ),
    "tokenizer that git did not fetch": (
        with_files({"spm.model": _POINTER}, f"prep {SOTU} --tokenizer spm.model --output o"),
        r"spm.model: is a pointer of Git LFS and not the file itself; fetch it: git lfs pull",
    ),
    "weights that git did not fetch": (
        with_files({"m/config.json": json.dumps(DEBERTA), "m/model.safetensors": _POINTER}, "convert import m o"),
        r"model.safetensors: is a pointer of Git LFS",
    ),
    "export below a file": (
        lambda f, p: [*done("convert export RUN")(f, p), f"{SOTU}/exported"],
        r"exported cannot be a folder: .*sotu.txt is a file",
    ),
    "recipe onto a folder": (
        done("init --data SET --output SET --overwrite"),
        r"cannot write .*: Is a directory; choose another name",
    ),
    "licence that is a sentence": (
        lambda f, p: [*done("convert export RUN o --license")(f, p), "do what you like"],
        r"--license 'do what you like' is no code; write one such as mit",
    ),
    "language that is none": (done("convert export RUN o --language en_US"), r"--language 'en_US' is no code"),
    "repository without an owner": (done("convert export RUN o --push mine"), r"is no repository of the hub; write"),
    "ONNX for microsoft/DeBERTa": (
        done("convert export RUN o --onnx --format microsoft"),
        r"--onnx is of a model of transformers; export with --format hf",
    ),
    "generator of a run without one": (
        done("convert export RUN o --model generator"),
        r"step-50: has no generator \(objective mlm\); export without --model",
    ),
    "mask filling after next tokens": (
        done("convert export RUN o", objective={"name": "ar"}),
        r"objective ar predicts next tokens .* --model backbone",
    ),
    "export into a checkpoint": (
        lambda f, p: [*done("convert export RUN")(f, p), str(f / "done/checkpoints/step-50/o")],
        r"is inside the checkpoint .*step-50, which would no longer match its manifest",
    ),
    "every step of one checkpoint": (
        done("convert export STEP o --all-steps"),
        r"holds no checkpoints of a run; --all-steps needs training.output_dir",
    ),
    "import of a configuration alone": (
        with_files(CONFIGURATION, "convert import m o"),
        r"m: holds none of model.safetensors.*; give a folder with a model's weights",
    ),
    "check of a configuration alone": (
        with_files(CONFIGURATION, "convert check m"),
        r"m: holds none of model.safetensors",
    ),
    "masks of a configuration alone": (
        with_files(CONFIGURATION, "fill-mask m [MASK]"),
        r"m: holds none of model.safetensors",
    ),
    "evaluation of longer sequences than there are positions": (
        done("evaluate RUN --length 4096"),
        r"--length 4096 is more than the \d+ absolute positions",
    ),
    "evaluation on data that were moved": (
        lambda f, p: done("evaluate RUN", data=_moved(f))(f, p),
        r"gone/valid: no shard here .*make one with `megadeberta prep`",
    ),
    "number of pairs without pairs": (done("evaluate RUN --pairs 3"), r"--pairs is of --blimp; give --blimp FILE too"),
    "export of a checkpoint that lost a file": (
        _damaged_run("convert export RUN o", lambda step: (step / "spm.model").unlink()),
        r"none of 1 checkpoints is intact, the newest: .*spm.model: is missing, the manifest lists it",
    ),
    "masks of a checkpoint that was cut off": (
        _damaged_run("fill-mask STEP [MASK]", lambda step: os.truncate(step / "node-0.safetensors", 100)),
        r"node-0.safetensors: 100 bytes, the manifest says \d+ .*the checkpoint is damaged; use an older one",
    ),
    "evaluation of a checkpoint whose manifest is damaged": (
        _damaged_run("evaluate RUN", lambda step: (step / "manifest.json").write_text("{")),
        r"none of 1 checkpoints is intact, the newest: .*manifest.json: not a manifest",
    ),
    "report of a run whose metrics are damaged": (
        with_files({"done/metrics.jsonl": '\0\n{"step": 1, "lo\n'}, "report done"),
        r"metrics.jsonl: none of its 2 lines is whole; the file is damaged, put a copy of it back",
    ),
    "private repository that is not pushed to": (
        done("convert export RUN o --private"),
        r"--private is of a repository",
    ),
}
