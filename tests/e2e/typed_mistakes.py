"""The rest of ``mistakes.py``: slips of the hand, of the shell and of units, and files of other programs."""

import json
import os
from pathlib import Path

from tests.data_fixtures import SOTU
from tests.e2e.further_mistakes import FURTHER_MISTAKES
from tests.e2e.late_mistakes import LATE_MISTAKES, done, with_files
from tests.e2e.mistakes import DEBERTA, MISTAKES, Case, as_recipe, override, words

_PREP = f"prep {SOTU} --vocab-size 300 --output o"


def _typed(*arguments: str) -> Case:
    """Words that may be empty or hold spaces."""
    return lambda folder, prepared: list(arguments)


def _on_set(line: str) -> Case:
    """A command in which SET is a prepared folder."""
    return lambda folder, prepared: line.replace("SET", str(prepared)).split()


def _prep_of(name: str, content: bytes, *options: str) -> Case:
    def case(folder: Path, prepared: Path) -> list[str]:
        (folder / name).write_bytes(content)
        return ["prep", name, "--output", "run", *(options or ("--vocab-size", "300"))]

    return case


def _link_to_nowhere(folder: Path, prepared: Path) -> list[str]:
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("some words\n" * 9)
    (folder / "texts" / "b.txt").symlink_to("/mnt/gone/b.txt")
    return ["prep", "texts", "--vocab-size", "300", "--output", "run"]


def _import_of(config: object, *files: str) -> Case:
    return with_files({"m/config.json": json.dumps(config), **dict.fromkeys(files, "")}, "convert import m o")


def _in_a_folder_of_others(line: str) -> Case:
    """Where this user may write nothing: of root, who may write everywhere, a name below a file."""

    def case(folder: Path, prepared: Path) -> list[str]:
        place = folder / "theirs"
        if os.geteuid() == 0:
            place.touch()
        else:
            place.mkdir(mode=0o555)
        return done(line.replace("THEIRS", str(place / "new")))(folder, prepared)

    return case


_SAME_TEXT = b"a text of the corpus, longer than one word\n" * 20
_NO_SUCH_PLACE = r"cannot be a folder: .*theirs is a file|cannot write .*: Permission denied"

TYPED_MISTAKES: dict[str, tuple[Case, str]] = {
    "variable of the shell that is not set": (
        _typed("prep", str(SOTU), "--vocab-size", "300", "--output", ""),
        r"--output has an empty value, such as that of a shell variable which is not set",
    ),
    "variable that is not set behind an equals sign": (
        _typed("prep", str(SOTU), "--output=", "--vocab-size", "300"),
        r"--output has an empty value",
    ),
    "corpus without a name": (_typed("prep", "", "--output", "o"), r"the word behind 'prep' is empty"),
    "data without a name": (_typed("init", "--data", "", "--output", "r.json"), r"--data has an empty value"),
    "option without its value": (
        words("prep texts --output o --text-key"),
        r"'--text-key' requires an argument \(`megadeberta prep --help` explains\)",
    ),
    "option of a group's command without its value": (
        words("data inspect x --documents"),
        r"requires an argument \(`megadeberta data inspect --help` explains\)",
    ),
    "command of a group without the group": (
        words("export runs/x out"),
        r"No such command 'export'; did you mean `megadeberta convert export`\?",
    ),
    "other command of a group without the group": (words("inspect x"), r"did you mean `megadeberta data inspect`\?"),
    "command in capital letters": (words("Train quickstart"), r"No such command 'Train'. Did you mean 'train'\?"),
    "name with spaces and without quotes": (
        words("train my recipe.json"),
        r"unexpected extra argument\(s\) \(recipe.json\); put quotes around one that holds spaces",
    ),
    "dash of a word processor": (words("train quickstart \u2014dry-run"), r"unexpected extra argument"),
    "quotes of a word processor": (
        words("train \u201cquickstart\u201d"),
        r"quickstart\u201d does not exist",
    ),
    "option of another trainer": (words("train quickstart --epochs 3"), r"No such option: --epochs"),
    "number with a unit": (words("prep texts --vocab-size 8k --output o"), r"'--vocab-size': .*valid integer"),
    "tokens with bytes": (_on_set("init --data SET --tokens 2MB --output r.json"), r"2MB is no number of tokens"),
    "memory with a unit": (words("plan quickstart --memory 80GB"), r"'--memory': .*valid number"),
    "part of a GPU": (words("plan quickstart --gpus 0.5"), r"'--gpus': .*valid integer"),
    "per cent in place of a fraction": (words(f"{_PREP} --valid-fraction 5"), r"--valid-fraction=5; choose 0"),
    "coverage in per cent": (words(f"{_PREP} --character-coverage 99.95"), r"choose 0.9 to 1"),
    "sample in per cent": (_on_set("data sample SET --fraction 5 --output o"), r"more than 0 and less than 1"),
    "fractions of more than all": (
        _on_set("data split SET --valid 0.6 --test 0.6 --output o"),
        r"two fractions above 0 that add up to less than 1",
    ),
    "set merged with itself": (_on_set("data merge SET SET --output o"), r"holds the same documents as .* once"),
    "set split into itself": (_on_set("data split SET --output SET"), r"is a set that is read; give another folder"),
    "set merged with text": (_on_set(f"data merge SET {SOTU.parent} --output o"), r"holds no train.bin"),
    "script in small letters": (
        words(f"{_PREP} --expect-script latin:0.9"),
        r"--expect-script: no script is called 'latin'; did you mean Latin\?",
    ),
    "script with a mistake in its name": (
        words(f"{_PREP} --quality min-script=Cyrilic:0.8"),
        r"no script is called 'Cyrilic'; did you mean Cyrillic\?",
    ),
    "script that does not exist": (words(f"{_PREP} --expect-script Elvish:0.9"), r"'Elvish'; report.json of a"),
    "script without a fraction": (words(f"{_PREP} --expect-script Latin"), r"NAME:FRACTION, such as Latin:0.9"),
    "rule that does not exist": (words(f"{_PREP} --quality webb"), r"--quality=webb is no rule; choose from"),
    "rule with a word": (words(f"{_PREP} --quality min-words=many"), r"'many' is not a number"),
    "unit of a document that does not exist": (words(f"{_PREP} --document-per page"), r"'page' is not one of"),
    "kind of vocabulary that does not exist": (words(f"{_PREP} --vocab-kind spm"), r"'spm' is not one of 'unigram'"),
    "part of no machines": (
        _on_set(f"prep {SOTU} --tokenizer SET --part 5/4 --output o"),
        r"--part=5/4; choose 1/N to N/N",
    ),
    "part without a tokenizer": (words(f"{_PREP} --part 1/2"), r"--part needs --tokenizer"),
    "file size without a number": (words(f"{_PREP} --max-file-size big"), r"give bytes, or a number with K, M, G or T"),
    "link to nowhere among the texts": (
        _link_to_nowhere,
        r"texts/b.txt: is a link to /mnt/gone/b.txt, which does not exist; bring it back",
    ),
    "text that is its own validation": (
        _prep_of("a.txt", _SAME_TEXT, "--vocab-size", "300", "--valid", "a.txt"),
        r"a.txt is given both for training and for validation",
    ),
    "text of UTF-16": (_prep_of("a.txt", "words".encode("utf-16")), r"is UTF-16; convert it: iconv -f UTF-16"),
    "document of a word processor": (_prep_of("a.docx", b"PK\3\4 and so on"), r"a.docx: is a zip archive"),
    "PDF": (_prep_of("a.pdf", b"%PDF-1.7\n"), r"a.pdf: is PDF; extract its text"),
    "text that ends in .gz": (_prep_of("a.gz", _SAME_TEXT), r"ends in .gz but holds no gzip data"),
    "table without the column": (_prep_of("a.csv", b"id,body\n1,x\n"), r"no column 'text' in the first line"),
    "pattern that matches nothing": (words("prep *.none --vocab-size 300 --output o"), r"no file matches this pattern"),
    "folder without a tokenizer": (
        with_files({"t/a": ""}, f"prep {SOTU} --tokenizer t --output o"),
        r"the folder t holds no tokenizer: none of spm.model, tokenizer.json",
    ),
    "tokenizer that is cut off": (
        with_files({"tokenizer.json": '{"model": {'}, f"prep {SOTU} --tokenizer tokenizer.json --output o"),
        r"tokenizer.json: not a tokenizer.json, or it is damaged",
    ),
    "tokenizer that is empty": (
        with_files({"spm.model": ""}, f"prep {SOTU} --tokenizer spm.model --output o"),
        r"spm.model is an empty file",
    ),
    "recipe that is empty": (as_recipe(" \n"), r"recipe.json: is an empty file"),
    "recipe in YAML that is empty": (as_recipe("", name="r.yaml"), r"r.yaml: is an empty file"),
    "recipe with a byte order mark": (
        as_recipe('\ufeff{"extends": "quickstart", "nme": "x"}'),
        r"recipe.json: unknown key nme; did you mean 'name'\?",
    ),
    "recipe of a word processor": (as_recipe("{\u201cname\u201d: 1}"), r'JSON has straight quotes: "name"'),
    "recipe in TOML": (as_recipe('name = "x"\n', name="r.toml"), r"in JSON, or YAML in a file that ends in .yaml or"),
    "YAML that ends in .json": (as_recipe("name: x\n"), r"in JSON, or YAML in a file that ends in .yaml or .yml"),
    "switch in place of a whole number": (
        as_recipe('{"extends": "quickstart", "training": {"steps": true}}'),
        r"training.steps=True: Input should be a number, and not true or false",
    ),
    "switch in place of a number": (override("optimizer.lr=true"), r"optimizer.lr=True: Input should be a number"),
    "setting without its section": (override("steps=5"), r"unknown key steps; did you mean .*training.steps"),
    "setting of another section": (
        override("training.warmup_steps=5"),
        r"unknown key training.warmup_steps; did you mean schedule.warmup_steps\?",
    ),
    "setting of two sections": (
        override("training.interval=5"),
        r"did you mean checkpoint.interval or logging.interval\?",
    ),
    "settings with a comma": (override("training.steps=5,000"), r"training.steps='5,000': .*valid integer"),
    "section in place of a value": (override("training.steps.more=5"), r"training.steps is a value, not a section"),
    "override with a space": (
        words("train quickstart --set training.steps 5"),
        r"unexpected extra argument\(s\) \(5\)",
    ),
    "code in YAML": (
        as_recipe("extends: quickstart\nname: !!python/object/apply:os.getcwd []\n", name="r.yaml"),
        r"r.yaml:2: not valid YAML: could not determine a constructor",
    ),
    "recipe and its ranks in one word": (_typed("train", "quickstart --dry-run"), r"quickstart --dry-run does not exi"),
    "hostfile without slots": (
        with_files({"hosts": "node1\n"}, "launch quickstart --hostfile hosts"),
        r"hosts:1: 'node1' is not of the form 'HOST slots=N'",
    ),
    "host that is listed twice": (
        with_files({"hosts": "a slots=2\na slots=2\n"}, "launch quickstart --hostfile hosts"),
        r"hosts:2: a is listed twice",
    ),
    "port that does not exist": (
        words("launch quickstart --ranks 2 --master-port 99999"),
        r"equal to 65535",
    ),
    "average of more than there are": (
        done("checkpoint average RUN o --last 99"),
        r"has 1 checkpoints, an average",
    ),
    "export of an export": (
        words("convert export nowhere/exported o"),
        r"no such folder; give the output",
    ),
    "export of a step that is gone": (done("convert export RUN/checkpoints/step-7 o"), r"step-7: no such folder"),
    "check of a file": (
        with_files({"m.safetensors": ""}, "convert check m.safetensors"),
        r"is a file; give the",
    ),
    "import of TensorFlow": (
        _import_of(DEBERTA, "m/tf_model.h5"),
        r"holds none of model.safetensors, .*; tf_model.h5 is of TensorFlow: save the whole model with torch",
    ),
    "import of llama.cpp": (_import_of(DEBERTA, "m/model.gguf"), r"model.gguf is of llama.cpp"),
    "import of a config without a size": (
        _import_of({**DEBERTA, "hidden_size": None}, "m/model.safetensors"),
        r"config.json: hidden_size is missing",
    ),
    "import of another activation": (
        _import_of({**DEBERTA, "hidden_act": "relu"}, "m/model.safetensors"),
        r"hidden_act='relu': Input should be 'gelu'",
    ),
    "import of a config that is a list": (_import_of([1], "m/model.safetensors"), r"holds a list, expected a JSON obj"),
    "import of a damaged file": (_import_of(DEBERTA, "m/model.safetensors"), r"cannot be read .*the file is damaged"),
    "import into a folder of others": (
        with_files({"m/config.json": json.dumps(DEBERTA), "theirs": ""}, "convert import m theirs/o"),
        r"cannot be a folder: .*theirs is a file",
    ),
    "export into a folder of others": (_in_a_folder_of_others("convert export RUN THEIRS"), _NO_SUCH_PLACE),
    "evaluation of one token": (done("evaluate RUN --length 1"), r"--length 1 is below 8, the shortest sequence"),
    "evaluation on a folder of texts": (done(f"evaluate RUN --text {SOTU.parent}"), r"cannot be read: Is a directory"),
    "mask of another model": (_typed("fill-mask", "x", "a <mask> b"), r"holds no \[MASK\]: 'a <mask> b'"),
    "text and model the wrong way round": (_typed("fill-mask", "a [MASK] b", "runs/x"), r"holds no \[MASK\]: 'runs/x'"),
    "text in several words": (words("fill-mask runs/x a [MASK] b"), r"put quotes around one that holds spaces"),
}

ALL_MISTAKES = MISTAKES | LATE_MISTAKES | TYPED_MISTAKES | FURTHER_MISTAKES
