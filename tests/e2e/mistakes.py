"""The list of ``test_mistakes.py``: what a new user types, by name, and what the one line of the answer must say."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy

from megadeberta.config.load import load_run_config
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.layers.shapes import parameter_shapes
from tests.data_fixtures import SOTU
from tests.e2e.tiny_run import write_recipe

Case = Callable[[Path, Path], list[str]]
DEBERTA = {
    "model_type": "deberta-v2",
    "vocab_size": 64,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
"""A config.json."""


def _shards(folder: Path, prepared: Path) -> Path:
    """A copy of the prepared set, to damage."""
    return Path(shutil.copytree(prepared, folder / "shards"))


def _damaged(change: Callable[[Path], None]) -> Case:
    def case(folder: Path, prepared: Path) -> list[str]:
        shards = _shards(folder, prepared)
        change(shards)
        return ["train", str(write_recipe(folder, shards))]

    return case


def _recipe(**changes: object) -> Case:
    return lambda folder, prepared: ["train", str(write_recipe(folder, prepared, **changes))]


def override(*overrides: str) -> Case:
    def case(folder: Path, prepared: Path) -> list[str]:
        words = [word for override in overrides for word in ("--set", override)]
        return ["train", str(write_recipe(folder, prepared)), *words]

    return case


def as_recipe(content: str, *, name: str = "recipe.json") -> Case:
    def case(folder: Path, prepared: Path) -> list[str]:
        (folder / name).write_text(content)
        return ["train", str(folder / name)]

    return case


def _import(*names: str) -> Case:
    """Of a folder with these empty files."""

    def case(folder: Path, prepared: Path) -> list[str]:
        place = folder / "model"
        place.mkdir()
        for name in names:
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).touch()
        return ["convert", "import", str(place), str(folder / "out")]

    return case


def _run_with(*words: str) -> Case:
    """A command on the folder of a run of one step."""

    def case(folder: Path, prepared: Path) -> list[str]:
        (folder / "done").mkdir()
        (folder / "done" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
        return [word.replace("RUN", str(folder / "done")) for word in words]

    return case


def words(line: str) -> Case:
    return lambda folder, prepared: line.split()


def _corpus(content: bytes, *options: str, name: str = "corpus.txt") -> Case:
    def case(folder: Path, prepared: Path) -> list[str]:
        (folder / name).write_bytes(content)
        options_or_default = options or ("--vocab-size", "300")
        return ["prep", str(folder / name), "--output", str(folder / "run"), *options_or_default]

    return case


def _truncate(path: Path, size: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(size)


def _wrong_magic(shards: Path) -> None:
    with open(shards / "train.idx", "r+b") as file:
        file.write(b"NOTANIDX")


def _other_tokenizer(shards: Path) -> None:
    model = shards / "tokenizer" / "spm.model"
    model.write_bytes(model.read_bytes() + b"\0")


def _output_is_a_file(folder: Path, prepared: Path) -> list[str]:
    (folder / "file").write_text("")
    return ["train", str(write_recipe(folder, prepared, training__output_dir=str(folder / "file")))]


def _nan_weights(folder: Path, prepared: Path) -> list[str]:
    """Weights of the right names and shapes, one value of which is not a number."""
    arguments = ["train", str(write_recipe(folder, prepared)), "--set", f"training.init_from={folder / 'weights'}"]
    (folder / "weights").mkdir()
    config = load_run_config(folder / "recipe.json").model
    shapes = parameter_shapes(config, ObjectiveConfig())
    weights = {name: np.full(shape, 0.01, np.float32) for name, shape in shapes.items()}
    weights["layer.0.feed_forward.up.weight"][3, 4] = np.nan
    safetensors.numpy.save_file(weights, folder / "weights" / "model.safetensors")
    return arguments


def _import_of_nan(folder: Path, prepared: Path) -> list[str]:
    arguments = _import("config.json")(folder, prepared)
    (folder / "model" / "config.json").write_text(json.dumps(DEBERTA))
    safetensors.numpy.save_file({"deberta.x": np.float32([1, np.inf])}, folder / "model" / "model.safetensors")
    return arguments


MISTAKES: dict[str, tuple[Case, str]] = {
    "recipe that does not exist": (
        lambda f, p: ["train", str(f / "quikstart.json")],
        r"recipe .*quikstart.json does not",
    ),
    "recipe that is not JSON": (as_recipe('{"name": "x",}'), r"recipe.json:1: not valid JSON"),
    "recipe that is a list": (as_recipe("[]"), r"one JSON object, found list"),
    "key given twice": (as_recipe('{"name": "a", "name": "b"}'), r"'name' is given twice"),
    "recipe that extends itself": (as_recipe('{"extends": "recipe.json"}'), r"forms a loop"),
    "missing section": (as_recipe('{"name": "x"}'), r"model is required and missing"),
    "unknown key": (
        override("model.num_heads=4"),
        r"unknown key model.num_heads; did you mean model.num_attention_heads",
    ),
    "unknown deepspeed key": (
        override('deepspeed.zero_optimisation={"stage":2}'),
        r"unknown key deepspeed.zero_optimisation; did you mean 'zero_optimization'",
    ),
    "override without a value": (override("optimizer.lr"), r"--set 'optimizer.lr' is not of the form"),
    "value of the wrong type": (override("training.steps=many"), r"training.steps='many'"),
    "negative learning rate": (override("optimizer.lr=-1"), r"optimizer.lr=-1"),
    "heads that do not divide": (override("model.num_attention_heads=3"), r"num_attention_heads=3 does not divide"),
    "sequence longer than positions": (override("data.sequence_length=65"), r"sequence_length=65 is longer than"),
    "batch that does not multiply out": (
        override("deepspeed.train_batch_size=5"),
        r"train_batch_size=5 is not a multiple .* nearest that works is train_batch_size=4",
    ),
    "warm-up longer than the run": (override("schedule.warmup_steps=99"), r"warmup_steps=99 leaves nothing"),
    "two precisions": (
        override('deepspeed.bf16={"enabled":true}', 'deepspeed.fp16={"enabled":true}'),
        r"bf16 and deepspeed.fp16 are both enabled",
    ),
    "wrong shard path": (_recipe(data__train="/nowhere/train"), r"/nowhere/train"),
    "tokenizer missing": (_recipe(data__tokenizer="/nowhere/spm.model"), r"/nowhere/spm.model"),
    "tokenizer of other shards": (_damaged(_other_tokenizer), r"another tokenizer"),
    "vocabulary too small for the tokenizer": (override("model.vocab_size=512"), r"vocab_size=512 is too small"),
    "truncated .bin": (_damaged(lambda s: _truncate(s / "train.bin", 1001)), r"train.bin"),
    "wrong magic": (_damaged(_wrong_magic), r"train.idx"),
    "manifest missing": (_damaged(lambda s: (s / "train.json").unlink()), r"train.json"),
    "output folder that is a file": (_output_is_a_file, r"a file of that name is in the way"),
    "asked to resume where nothing is": (override("checkpoint.resume=required"), r"no checkpoint to resume from"),
    "weights that are not numbers": (_nan_weights, r"NaN or infinity, first layer.0.feed_forward.up.weight"),
    "corpus that does not exist": (
        lambda f, p: ["prep", str(f / "none.txt"), "--vocab-size", "300", "--output", str(f / "run")],
        r"none.txt",
    ),
    "empty corpus": (_corpus(b""), r"corpus.txt"),
    "corpus of blank lines": (_corpus(b"\n \n\t\n"), r"no "),
    "line of 40 MB": (_corpus(b"word " * 8_000_000), r"longer than .*corpus.txt:1 "),
    "invalid UTF-8": (_corpus(b"caf\xe9 latin one\n" * 50), r"not valid UTF-8, first at corpus.txt:1 "),
    "JSON without the key": (_corpus(b'{"body": "x"}\n' * 20, name="corpus.jsonl"), r"'text'"),
    "vocabulary larger than the corpus allows": (
        _corpus(b"a few words only, said twice. a few words only.\n", "--vocab-size", "5000"),
        r"5000",
    ),
    "neither vocabulary nor tokenizer": (_corpus(b"text\n", "--workers", "1"), r"--vocab-size"),
    "tokenizer that is none": (_corpus(b"text\n", "--tokenizer", str(SOTU)), r"sotu.txt"),
    "shards that are none": (
        lambda f, p: ["verify", str(f)],
        r"holds no train.bin, .idx and .json: .*run `megadeberta prep",
    ),
    "checkpoint that is none": (lambda f, p: ["convert", "export", str(f), str(f / "run")], r"checkpoint"),
    "mask filling without a mask": (lambda f, p: ["fill-mask", str(f), "no mask here"], r"\[MASK\]|checkpoint|folder"),
    "no such command": (lambda f, p: ["trian"], r"trian"),
    "no such option": (lambda f, p: ["train", "x.json", "--step", "3"], r"--step"),
    "shipped recipe with a mistake in its name": (words("train quikstart"), r"did you mean quickstart\?"),
    "recipe that is a folder": (lambda f, p: ["train", str(p)], r"is a folder; give a file in it"),
    "parent that does not exist": (
        as_recipe('{"extends": "quikstart", "name": "x"}'),
        r"recipe.json: extends: recipe .*quikstart does not exist; did you mean quickstart",
    ),
    "comment in JSON": (as_recipe('{\n// mine\n"name": "x"}'), r"recipe.json:2: .*JSON has no comments"),
    "tab in YAML": (as_recipe("extends: quickstart\n\tname: x\n", name="r.yaml"), r"r.yaml:2: not valid YAML"),
    "no recipe": (words("train"), r"Missing argument 'RECIPE'"),
    "two recipes": (words("train a.json b.json"), r"unexpected extra argument"),
    "folder and path of the data": (
        override("data.folder=x", "data.train=y"),
        r"data.folder=x and data.train=y are given",
    ),
    "folder of the data with a mistake in its name": (
        lambda f, p: override(f"data.folder={p}x")(f, p),
        r"data.train=.* do not exist, did you mean .*/train\?.*data.valid=.*data.tokenizer=",
    ),
    "folder in place of a prefix": (
        lambda f, p: override(f"data.train={p}")(f, p),
        r"is a folder, did you mean .*/train\?",
    ),
    "file in place of a prefix": (
        lambda f, p: override(f"data.train={p}/train.bin")(f, p),
        r"train.bin: is a file, and no prefix, did you mean .*/train\?",
    ),
    "folder in place of a tokenizer": (
        lambda f, p: override(f"data.tokenizer={p}")(f, p),
        r"is a folder, did you mean .*/tokenizer/spm.model\?",
    ),
    "automatic vocabulary without a tokenizer": (
        override("model.vocab_size=auto", "data.tokenizer=none/spm.model"),
        r"vocab_size=auto: the tokenizer none/spm.model does not exist",
    ),
    "one token file under two names": (
        lambda f, p: _recipe(data__train={n: {"prefix": str(p / "train")} for n in ("en", "de")})(f, p),
        r"are the same token file",
    ),
    "empty output folder": (override("training.output_dir="), r"output_dir is an empty path"),
    "no steps": (override("training.steps=0"), r"training.steps=0: Input should be greater than 0"),
    "schedule that does not exist": (override("schedule.name=lineer"), r"schedule.name='lineer'.*'linear'"),
    "objective that does not exist": (override("objective.name=mml"), r"'mml' is unknown; did you mean 'mlm'"),
    "backend that does not exist": (override("training.attention=flash"), r"'flash' is no attention backend"),
    "all tokens masked": (override("objective.mask_rate=1.5"), r"objective.mask_rate=1.5"),
    "generator without layers": (
        override("objective.name=rtd", "objective.rtd.generator_layers=1"),
        r"the generator is no model",
    ),
    "value in place of a section": (override("model=3"), r"model=3"),
    "text in place of a number": (override("optimizer.lr=fast"), r"optimizer.lr='fast'"),
    "key of another library": (override("optimizer.betas=[0.9,0.98]"), r"unknown key optimizer.betas; did you mean"),
    "optimizer of DeepSpeed": (override("deepspeed.optimizer={}"), r"its place is the `optimizer` section"),
    "ZeRO stage that does not exist": (override("deepspeed.zero_optimization.stage=4"), r"must be 0, 1, 2 or 3"),
    "switch in place of a section": (override("deepspeed.bf16=true"), r"deepspeed.bf16 must be an object, found True"),
    "text in place of DeepSpeed's number": (
        override("deepspeed.gradient_clipping=one"),
        r"deepspeed.gradient_clipping must be a number from 0 on, found 'one'",
    ),
    "text in place of DeepSpeed's switch": (
        override('deepspeed.wall_clock_breakdown="no"'),
        r"deepspeed.wall_clock_breakdown must be true or false, found 'no'",
    ),
    "precision that is on by a text": (
        override('deepspeed.bf16={"enabled":"false"}'),
        r"deepspeed.bf16.enabled must be true or false, found 'false'",
    ),
    "more tensor ranks than ranks": (override("parallel.tensor=2"), r"needs a multiple of 2 ranks, and there are 1"),
    "module that is not installed": (
        override('plugins=["no_such_module"]'),
        r"'no_such_module' .* cannot be imported",
    ),
    "weights that do not exist": (
        override("training.init_from=nowhere"),
        r"init_from=nowhere: .*no such folder or file",
    ),
    "ranks of a training": (words("train quickstart --ranks 2"), r"`megadeberta launch quickstart --ranks 2`"),
    "no ranks": (words("launch quickstart --ranks 0"), r"--ranks.*greater than or equal to 1"),
    "hostfile that does not exist": (words("launch quickstart --hostfile nohosts"), r"nohosts cannot be read"),
    "hostfile and ranks": (words("launch quickstart --hostfile h --ranks 2"), r"leave --ranks and --slurm out"),
    "plan of no GPUs": (words("plan quickstart --gpus 0"), r"'--gpus': Input should be greater than or equal to 1"),
    "plan that does not fit": (
        words("plan deberta-v2-xxlarge --gpus 1 --memory 8"),
        r"nothing fits: .*use more GPUs or larger ones",
    ),
    "recipe for raw text": (lambda f, p: ["init", "--data", str(f)], r"holds no train.bin.*run `megadeberta prep"),
    "look into raw text": (lambda f, p: ["data", "inspect", str(f)], r"holds no train.bin.*run `megadeberta prep"),
    "dry run on raw text": (
        lambda f, p: ["train", "quickstart", "--dry-run", "--set", f"data.folder={SOTU.parent}"],
        r"data.train=\S*/train: train.bin, .idx and .json do not exist",
    ),
    "recipe for nothing": (words("init --data nowhere"), r"nowhere does not exist; give the --output folder"),
    "report of no run": (lambda f, p: ["report", str(f)], r"holds no metrics.jsonl with training steps"),
    "report of a file": (_run_with("report", "RUN/metrics.jsonl"), r"metrics.jsonl is a file; give a run's"),
    "report of nothing": (words("report nowhere"), r"nowhere does not exist; give a run's"),
    "page that is a folder": (_run_with("report", "RUN", "--html", "."), r"--html=\.: is a folder, .*give a file"),
    "page in no folder": (_run_with("report", "RUN", "--html", "no/such.html"), r"lies in one that does not exist"),
    "tracker that is not known": (
        override('logging.trackers=["comet"]'),
        r"trackers.0='comet': .*'wandb', 'trackio' or 'mlflow'",
    ),
    "tracker that is no list": (override("logging.trackers=wandb"), r"must be a list, such as \[\"wandb\"\]"),
    "profile that is no window": (override("logging.profile_steps=[9,3]"), r"\[9, 3\] must be \[first, last\]"),
    "key twice in YAML": (
        as_recipe("extends: quickstart\nname: x\nname: y\n", name="r.yaml"),
        r"r.yaml:3: .*given twice",
    ),
    "list in YAML": (as_recipe("- extends: quickstart\n", name="r.yaml"), r"is one YAML mapping, found list"),
    "evaluation of a recipe": (
        lambda f, p: ["evaluate", str(write_recipe(f, p))],
        r"recipe.json: is no file of weights; give a folder, or its .safetensors or .bin",
    ),
    "evaluation of nothing": (words("evaluate nowhere"), r"nowhere: no such folder or file; .* OWNER/MODEL"),
    "model by its address": (
        words("convert import https://huggingface.co/microsoft/deberta-v3-base out"),
        r"write the model of the hub as microsoft/deberta-v3-base",
    ),
    "import of a text": (
        lambda f, p: ["convert", "import", str(SOTU), str(f / "out")],
        r"sotu.txt: is no file of weights",
    ),
    "import of weights that are not numbers": (_import_of_nan, r"1 of 1 tensors hold NaN or infinity, first deberta.x"),
    "import of a run": (_import("checkpoints/latest"), r"is a run of ours.*`megadeberta convert export`"),
    "import of an import": (_import("model.json"), r"is an imported folder already; training.init_from takes it"),
    "weights without their configuration": (
        lambda f, p: [*_import("pytorch_model.bin")(f, p)[:2], str(f / "model" / "pytorch_model.bin"), str(f / "out")],
        r"model/config.json: is missing; give a folder of transformers or microsoft/DeBERTa",
    ),
    "Microsoft's pickled vocabulary": (
        lambda f, p: [
            "prep",
            str(SOTU),
            "--output",
            str(f / "o"),
            "--tokenizer",
            _import("bpe_encoder.bin")(f, p)[2] + "/bpe_encoder.bin",
        ],
        r"bpe_encoder.bin: is Microsoft's pickle .*`hf download microsoft/deberta-base vocab.json merges.txt",
    ),
    "checkpoints of no run": (lambda f, p: ["checkpoint", "list", str(f)], r"holds no checkpoints"),
    "corpus that is not known": (words("fetch wikitext3"), r"no corpus named 'wikitext3'; known: wikitext2"),
    "output of prep that is a file": (
        lambda f, p: ["prep", str(SOTU), "--vocab-size", "300", "--output", str(SOTU)],
        r"--output=.*sotu.txt is a file; give a folder",
    ),
    "vocabulary and tokenizer": (
        lambda f, p: _corpus(b"text\n", "--vocab-size", "300", "--tokenizer", str(p / "tokenizer/spm.model"))(f, p),
        r"give either --vocab-size, .* or --tokenizer",
    ),
}
IN_A_PROCESS = {
    "weights that do not exist",
    "evaluation of nothing",
    "import of a run",
    "line of 40 MB",
    "recipe that does not exist",
    "no such option",
    "plan that does not fit",
    "empty corpus",
    "wrong magic",
    "text in place of DeepSpeed's number",
}
"""Through the installed command, with its start and its time; the others through the same function in this process."""
