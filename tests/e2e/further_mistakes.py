"""More of ``mistakes.py``: names of other trainers, types inside DeepSpeed's sections, paths that a shell left as they
were, and weights of another model than is asked for."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy

from megadeberta.config.load import load_run_config
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.layers.shapes import parameter_shapes
from tests.data_fixtures import SOTU
from tests.e2e.late_mistakes import done, with_files
from tests.e2e.mistakes import DEBERTA, Case, override, words
from tests.e2e.tiny_run import write_recipe

_HEADLESS = {"deberta.embeddings.word_embeddings.weight": np.zeros((64, 8), np.float32)}
"""Of an export without a head, as far as names tell."""


def _headless(line: str) -> Case:
    """A command on the folder m, whose weights are an encoder alone."""

    def case(folder: Path, prepared: Path) -> list[str]:
        (folder / "m").mkdir()
        (folder / "m" / "config.json").write_text(json.dumps(DEBERTA))
        safetensors.numpy.save_file(_HEADLESS, folder / "m" / "model.safetensors")
        return line.split()

    return case


def _weights_of_another(change: str) -> Case:
    """A start from an imported model with other sizes than the recipe's."""

    def case(folder: Path, prepared: Path) -> list[str]:
        recipe = write_recipe(folder, prepared)
        model = load_run_config(recipe, [change]).model
        shapes = parameter_shapes(model, ObjectiveConfig())
        (folder / "weights").mkdir()
        (folder / "weights" / "model.json").write_text(json.dumps(model.model_dump(mode="json")))
        weights = {name: np.full(shape, 0.01, np.float32) for name, shape in shapes.items()}
        safetensors.numpy.save_file(weights, folder / "weights" / "model.safetensors")
        return ["train", str(recipe), "--set", "training.init_from=weights"]

    return case


def _circle(line: str) -> Case:
    """A command in a folder where r.json is a link to itself."""

    def case(folder: Path, prepared: Path) -> list[str]:
        (folder / "r.json").symlink_to("r.json")
        return line.split()

    return case


def _launched(*more: str) -> Case:
    return lambda folder, prepared: ["launch", str(write_recipe(folder, prepared)), "--ranks", "2", *more]


FURTHER_MISTAKES: dict[str, tuple[Case, str]] = {
    "learning rate by another name": (override("training.learning_rate=1e-4"), r"did you mean optimizer.lr\?"),
    "batch by another name": (override("training.batch_size=8"), r"did you mean deepspeed.train_batch_size\?"),
    "epochs in place of steps": (override("training.num_train_epochs=3"), r"did you mean training.steps\?"),
    "layers by another name": (override("model.layers=3"), r"did you mean model.num_hidden_layers\?"),
    "key of DeepSpeed outside its block": (
        override("training.gradient_accumulation_steps=2"),
        r"did you mean deepspeed.gradient_accumulation_steps\?",
    ),
    "section in another section": (override("parallel.data=2"), r"unknown key parallel.data; known keys here: tensor"),
    "setting as an option": (
        words("train quickstart --learning-rate 1e-4"),
        r"No such option: --learning-rate; a setting of the recipe is given as --set optimizer.lr=VALUE",
    ),
    "GPUs as torchrun has them": (
        words("launch quickstart --nproc-per-node 2"),
        r"No such option: --nproc-per-node; `megadeberta launch` has --ranks",
    ),
    "resuming that is asked for": (words("train quickstart --resume"), r"the same command resumes by itself"),
    "objective in capital letters": (override("objective.name=RTD"), r"did you mean 'rtd'\?"),
    "text in place of a section": (override("deepspeed=ds.json"), r"deepspeed='ds.json': must be a section with keys"),
    "number in place of a path": (override("training.output_dir=5"), r"output_dir=5: must be the path of a file"),
    "name with a slash": (override("name=a/b"), r"name='a/b': must match "),
    "folder of the data without a name": (override("data.folder="), r"data.folder='' is no path"),
    "no data in a blend": (override("data.train={}"), r"data.train={}: must not be empty"),
    "workers without end": (override("data.loader_workers=100000"), r"less than or equal to 1024"),
    "link that leads back to itself": (_circle("train r.json"), r"r.json cannot be read: Too many levels of symbolic"),
    "output in links that lead back": (
        _circle(f"prep {SOTU} --vocab-size 300 --output r.json/o"),
        r"r.json.*(Too many levels of symbolic links|links that lead back)",
    ),
    "file of a plugin": (
        override('plugins=["./mine.py"]'),
        r"name the module mine, not its file; it must be installed",
    ),
    "home folder behind an equals sign": (
        override("training.output_dir=~/run"),
        r"training.output_dir=~/run: the shell leaves ~ as it is within quotes and behind an =; write the whole path",
    ),
    "home folder in quotes": (
        lambda folder, prepared: ["prep", "~/texts", "--vocab-size", "300", "--output", "o"],
        r"~/texts: the shell leaves ~ as it is",
    ),
    "variable in single quotes": (
        lambda folder, prepared: ["prep", str(SOTU), "--vocab-size", "300", "--output", "$SCRATCH/o"],
        r"\$SCRATCH/o: the shell leaves \$SCRATCH as it is",
    ),
    "home folder in a recipe": (
        with_files(
            {"r.yaml": "extends: quickstart\ntraining:\n  output_dir: ~/runs/a\n"},
            "train r.yaml",
        ),
        r"r.yaml: output_dir=~/runs/a: ~ is for a shell; write the whole path",
    ),
    "key of ZeRO with a mistake in it": (
        override('deepspeed.zero_optimization={"stagee":1}'),
        r"unknown key deepspeed.zero_optimization.stagee; did you mean 'stage'\?",
    ),
    "key of fp16 with a mistake in it": (
        override("deepspeed.fp16.loss_scal=0"),
        r"unknown key deepspeed.fp16.loss_scal; did you mean 'loss_scale'\?",
    ),
    "text in place of a bucket": (
        override('deepspeed.zero_optimization={"stage":1,"reduce_bucket_size":"5e8"}'),
        r"zero_optimization.reduce_bucket_size must be a whole number, found '5e8'",
    ),
    "text in place of ZeRO's switch": (
        override('deepspeed.zero_optimization={"stage":1,"overlap_comm":"yes"}'),
        r"zero_optimization.overlap_comm must be true or false, found 'yes'",
    ),
    "text in place of DeepSpeed's interval": (
        override("deepspeed.steps_per_print=often"),
        r"deepspeed.steps_per_print must be a positive integer, found 'often'",
    ),
    "block size that is a text": (override("deepspeed.aio.block_size=1M"), r"aio.block_size must be a whole number"),
    "key of the pipeline with a mistake in it": (
        override("deepspeed.pipeline.seed_layer=true"),
        r"unknown key deepspeed.pipeline.seed_layer; did you mean 'seed_layers'\?",
    ),
    "switch in place of a stage": (
        override("deepspeed.zero_optimization.stage=true"),
        r"zero_optimization.stage=True must be 0, 1, 2 or 3",
    ),
    "loss scale that is a text": (override("deepspeed.fp16.loss_scale=auto"), r"fp16.loss_scale must be a number"),
    "address without a hostfile": (
        _launched("--master-addr", "10.0.0.1"),
        r"--master-addr 10.0.0.1 is an address of a --hostfile's first host; leave it out here",
    ),
    "option for the ranks that they do not have": (_launched("--", "--bogus"), r"No such option: --bogus \(`megadeb"),
    "word that launch does not take": (_launched("bogus"), r"unexpected extra argument\(s\) \(bogus\)"),
    "text in place of a hostfile": (
        lambda folder, prepared: ["launch", "quickstart", "--hostfile", str(SOTU)],
        r"sotu.txt:1: '.{60}' is not of the form 'HOST slots=N'",
    ),
    "type of GPU without its memory": (words("plan quickstart --gpu a100"), r"did you mean 'a100-40' or 'a100-80'\?"),
    "speed without end": (words("plan quickstart --tflops inf"), r"'--tflops': Input should be less than or equal"),
    "millions of machines": (words("plan quickstart --nodes 1000000"), r"'--nodes': .* less than or equal to 65536"),
    "set in place of its tokenizer": (
        lambda folder, prepared: ["prep", str(SOTU), "--tokenizer", str(prepared), "--output", "o"],
        r"holds no tokenizer: .*did you mean .*/tokenizer\?",
    ),
    "checkpoints in place of the run": (done("checkpoint list done/checkpoints"), r"did you mean .*done\?"),
    "step in place of the run": (done("checkpoint verify STEP"), r"did you mean .*done\?"),
    "more guesses than pieces": (done("fill-mask RUN [MASK] --top-k 999999"), r"--top-k 999999 is not between 1 and"),
    "text that is too long for the model": (
        lambda folder, prepared: [*done("fill-mask RUN")(folder, prepared), "[MASK] " * 600],
        r"the text has \d+ tokens with \[CLS\] and \[SEP\], the model takes \d+",
    ),
    "evaluation of an encoder": (
        lambda folder, prepared: [*_headless("evaluate m --text")(folder, prepared), str(SOTU)],
        r"m: has no mlm_head.decoder.bias, without which nothing can be predicted; export with --model mlm",
    ),
    "masks of an encoder": (
        _headless("fill-mask m [MASK]"),
        r"m: has no mlm_head.decoder.bias, without which nothing can be predicted; export with --model mlm",
    ),
    "import of an encoder": (
        _headless("convert import m o"),
        r"m: has no head that predicts tokens; add --allow-new to start one from random values",
    ),
    "import onto a vocabulary that is none": (
        lambda folder, prepared: [*_headless("convert import m o --tokenizer")(folder, prepared), str(SOTU)],
        r"sotu.txt is not a SentencePiece model",
    ),
    "weights of another size": (
        _weights_of_another("model.intermediate_size=96"),
        r"tensors do not fit the recipe's model, first .*intermediate|feed_forward.*model.json",
    ),
    "run into the folder of an imported model": (
        lambda folder, prepared: (
            [*_weights_of_another("name=x")(folder, prepared)[:2], "--set", "training.output_dir=weights"]
        ),
        r"training.output_dir=weights holds a model; give the run a folder of its own",
    ),
}
