"""The checkpoint on a Hub, loaded by transformers with the package and without it; the Hub is the tests' own.

Two client processes, since the libraries read HF_ENDPOINT when they are imported: one with the package and one in which
only installed packages are found (`-S` leaves out editable ones), each with a cache of its own.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import torch
from hub_server import hub_server
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoProcessor, AutoTokenizer, pipeline
from transformers.dynamic_module_utils import get_imports, get_relative_imports

import trade_hf
from trade_hf import parse, remote_code
from trade_hf.auto import TASK, Registrar, register
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.formats import to_weights
from trade_hf.compiled.transforms import permute
from trade_hf.compiled.weights import WeightsError
from trade_hf.decompiler import DEFAULT_CHECKPOINT, decompile
from trade_hf.remote_code import PACKAGE, export
from trade_hf.with_code import CUSTOM_PIPELINES

ROOT = Path(__file__).resolve().parent.parent
REPO = "trade/trade-base"
WITH_WORDS = "v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)\nprogram = rasp.SelectorWidth(v1)"

SHARED = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file

repo, copy, checkpoint, folder, file = sys.argv[1:]

def is_shipped(model):
    shipped = load_file(Path(checkpoint) / "model.safetensors")
    state = model.state_dict()
    return all(torch.equal(state[name], tensor) for name, tensor in shipped.items() if name in state)

def push(model, processor, trust):
    model.push_to_hub(copy, max_shard_size="1MB")
    processor.save_pretrained("saved", push_to_hub=True, repo_id=copy)
    again = AutoModelForSeq2SeqLM.from_pretrained(copy, dtype="auto", **trust)
    assert is_shipped(again) and again.state_dict().keys() == model.state_dict().keys()
    assert type(AutoProcessor.from_pretrained(copy, **trust)).__name__ == "TraDeProcessor"
"""

WITH_THE_PACKAGE = (
    SHARED
    + """
from transformers import AutoConfig
import trade_hf
from huggingface_hub import HfApi
HfApi().create_repo(repo)
HfApi().upload_folder(repo_id=repo, folder_path=folder)

from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoProcessor, AutoTokenizer, pipeline
model, processor = AutoModelForSeq2SeqLM.from_pretrained(repo, dtype="auto"), AutoProcessor.from_pretrained(repo)
parts = [AutoConfig.from_pretrained(repo), AutoModel.from_pretrained(repo, dtype="auto"), model, processor]
pipe = pipeline("rasp-decompilation", model=repo)
assert {type(part).__module__.split(".")[0] for part in [*parts, pipe]} == {"trade_hf"}
assert is_shipped(parts[1]) and is_shipped(model)
assert AutoTokenizer.from_pretrained(repo).get_vocab() == processor.tokenizer.get_vocab()
push(model, processor, {})
print(json.dumps({"pipeline": pipe(file)}))
"""
)

WITHOUT_THE_PACKAGE = (
    SHARED
    + """
import importlib.util
from safetensors import safe_open
from safetensors.numpy import load_file as load_arrays
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoProcessor, AutoTokenizer, pipeline

assert importlib.util.find_spec("trade_hf") is None
trust = {"trust_remote_code": True}
model = AutoModelForSeq2SeqLM.from_pretrained(repo, dtype="auto", **trust)
processor = AutoProcessor.from_pretrained(repo, **trust)
parts = [AutoConfig.from_pretrained(repo, **trust), AutoModel.from_pretrained(repo, dtype="auto", **trust), model]
pipe = pipeline("rasp-decompilation", model=repo, **trust)
assert {type(part).__module__.split(".")[0] for part in [*parts, processor, pipe]} == {"transformers_modules"}
assert is_shipped(parts[1]) and is_shipped(model)
assert AutoTokenizer.from_pretrained(repo, **trust).get_vocab() == processor.tokenizer.get_vocab()
push(model, processor, trust)

ids = model.float().generate(**processor(file), prefix_allowed_tokens_fn=processor.allowed_next)
with safe_open(file, "numpy") as opened:
    metadata = json.loads(opened.metadata()["trade"])
sources = [file, Path(file).read_bytes(), {**load_arrays(file), **metadata}]
errors = []
for bad in (3, bytes([128, 4]), {"vocab": [1]}):
    try:
        pipe(bad)
    except ValueError as error:
        errors.append(str(error))
assert not {"trade_hf", "dataset_builder", "tracr", "jax"} & sys.modules.keys()
answers = {"greedy": processor.to_code(ids[0], file), "pipeline": pipe(file), "list": pipe(sources), "errors": errors}
print(json.dumps(answers))
"""
)


def run(code, name, folder, file, hub, home, path):
    """The JSON that a client prints last; it finds the package where `path` is the folder that holds it."""
    environment = {**hub.environment(home, hub.token), "PYTHONPATH": path}
    arguments = [REPO, f"trade/{name}", DEFAULT_CHECKPOINT, folder, file]
    command = [sys.executable, *(["-S"] if path != str(ROOT) else []), "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def model():
    return permute(compile_program(parse(WITH_WORDS), ("a", "b", "c"), 4), 3)


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "trade-base"
    export(DEFAULT_CHECKPOINT, folder)
    return folder


def test_push_and_load_over_http_with_the_package_and_without(exported, file, tmp_path):
    expected = decompile(file).to_dict()
    with hub_server() as hub:
        for home in ("with", "without"):
            (tmp_path / home).mkdir()
        given = run(WITH_THE_PACKAGE, "with", exported, file, hub, tmp_path / "with", str(ROOT))
        assert given == {"pipeline": expected}

        installed = sysconfig.get_path("purelib")
        given = run(WITHOUT_THE_PACKAGE, "without", exported, file, hub, tmp_path / "without", installed)
        assert given["pipeline"] == expected and given["list"] == [expected] * 3
        assert given["greedy"] == expected["code"]
        assert given["errors"] == [
            "expected a safetensors or npz file, its bytes, a dictionary of arrays or a model of tracr or "
            "TransformerLens, got int",
            "expected a safetensors file, got a pickle or an archive, which is never opened",
            "expected Tracr's parameters (token_embed/embeddings, …), got no tensor",
        ]
        for name in ("with", "without"):
            shards = [path for path in hub.files("model", f"trade/{name}") if path.endswith(".safetensors")]
            assert len(shards) > 3
            assert hub.files("model", f"trade/{name}").keys() >= {path.name for path in exported.glob("*.py")}
        assert hub.files("model", REPO).keys() == {str(path.relative_to(exported)) for path in exported.rglob("*.*")}


def test_registered_with_transformers(tiny_checkpoint, file):
    register()  # once more changes nothing
    config, processor = AutoConfig.from_pretrained(tiny_checkpoint), AutoProcessor.from_pretrained(tiny_checkpoint)
    models = [auto.from_pretrained(tiny_checkpoint) for auto in (AutoModel, AutoModelForSeq2SeqLM)]
    names = ["TraDeConfig", "TraDeProcessor", "TraDeModel", "TraDeForConditionalGeneration"]
    assert [type(part).__name__ for part in (config, processor, *models)] == names
    assert AutoTokenizer.from_pretrained(tiny_checkpoint).get_vocab() == processor.tokenizer.get_vocab()
    pipe = pipeline(TASK, model=str(tiny_checkpoint))
    assert pipe([]) == [] and pipe.model.dtype.is_floating_point
    with pytest.raises(ValueError, match="max_candidates, budget_seconds, max_steps, got beams"):
        pipe(str(file), beams=3)
    few = pipe([str(file)], max_candidates=1)
    verdict = {"code", "status", "proven", "certificate", "elsewhere", "faint", "departure", "limits"}
    assert few[0].keys() == verdict | {"score", "candidates", "ended_by"}


def test_modules_are_found_as_before():
    spec = Registrar().find_spec("trade_hf.demo", trade_hf.__path__)
    assert spec.loader.get_code("trade_hf.demo") and "def run_demo" in spec.loader.get_source("trade_hf.demo")
    assert Registrar().find_spec("trade_hf.nothing", trade_hf.__path__) is None
    assert trade_hf.auto.__loader__ is trade_hf.auto.__spec__.loader is not None


# ---------------------------------------------------------------- saved folders load anywhere

USE_BARE = """
import importlib.util, json, sys
assert importlib.util.find_spec("trade_hf") is None
folder, again, file, kind = sys.argv[1:]
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoProcessor, pipeline
trust = {"trust_remote_code": True}
pipe = pipeline("rasp-decompilation", model=folder, **trust)
answers = pipe([file, file + ".gone", file])
parts = [AutoConfig.from_pretrained(folder, **trust), AutoModel.from_pretrained(folder, **trust), pipe.model]
if kind == "pipeline":
    pipe.save_pretrained(again)
    parts.append(AutoProcessor.from_pretrained(folder, **trust))
else:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, **trust)
    model.save_pretrained(again)
assert {type(part).__module__.split(".")[0] for part in parts} == {"transformers_modules"}
assert "trade_hf" not in sys.modules
print(json.dumps({"answers": answers, "weight": float(next(pipe.model.parameters()).sum())}))
"""


def used_bare(folder, again, file, kind):
    """What a process without trade-hf gets from a folder, which it then saves again."""
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "HF_HOME": str(again.parent / "home")}
    command = [sys.executable, "-S", "-c", USE_BARE, *map(str, (folder, again, file, kind))]
    done = subprocess.run(
        command, env=environment, cwd=again.parent, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["pipeline", "model"])
def test_what_is_saved_loads_where_the_package_is_not(tiny_checkpoint, file, tmp_path, kind):
    """A model, loaded and changed, is saved with the package, and again by a process that has that folder alone."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    pipe = pipeline(TASK, model=str(tiny_checkpoint))
    with torch.no_grad():
        next(pipe.model.parameters()).add_(0.01)  # as training does
    (pipe if kind == "pipeline" else pipe.model).save_pretrained(first)
    expected = {"answers": pipe([str(file), f"{file}.gone", str(file)])}
    expected["weight"] = pytest.approx(float(next(pipe.model.parameters()).detach().sum()), rel=1e-5)
    assert used_bare(first, second, file, kind) == expected
    assert used_bare(second, third, file, kind) == expected
    assert {path.name for path in second.iterdir()} == {path.name for path in first.iterdir()}


def test_saved_without_code_where_it_is_not_wanted(tiny_checkpoint, tmp_path):
    model, processor = (auto.from_pretrained(tiny_checkpoint) for auto in (AutoModelForSeq2SeqLM, AutoProcessor))
    for part in (model, processor):
        part.save_pretrained(tmp_path, with_code=False)
    assert not any("auto_map" in path.read_text() for path in tmp_path.glob("*.json"))
    assert not list(tmp_path.glob("*.py"))


def test_one_bad_file_does_not_cost_the_others(tiny_checkpoint, file, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"PK")
    pipe = pipeline(TASK, model=str(tiny_checkpoint))
    bad = [str(tmp_path / "broken.safetensors"), str(tmp_path / "none.safetensors"), 3]
    [good] = pipe([str(file)], max_candidates=1)
    for several in (lambda items: items, lambda items: (item for item in items)):
        answers = list(pipe(several([bad[0], str(file), *bad[1:]]), max_candidates=1))
        assert answers[1] == good
        for answer, message in zip(
            [answers[0], *answers[2:]], ["a pickle or an archive", "none.safetensors", "got int"], strict=True
        ):
            assert answer.keys() == {"code", "proven", "error"} and message in answer["error"]
    for one in bad:
        with pytest.raises((ValueError, OSError)):
            pipe(one)


# ---------------------------------------------------------------- the code that goes to the Hub


def test_the_exported_code_needs_its_siblings_and_the_requirements_alone(exported):
    installed = {"huggingface_hub", "numpy", "safetensors", "tokenizers", "torch", "transformers"}
    files = {path.stem: path for path in exported.glob("*.py")}
    assert {"configuration_trade", "modeling_trade", "processing_trade", "handler"} <= files.keys()
    for path in files.values():
        assert set(get_relative_imports(path)) <= files.keys() - {"handler"}
        assert set(get_imports(path)) <= installed | sys.stdlib_module_names, path


def test_the_exported_code_is_the_package_but_for_imports(exported):
    for path in exported.glob("*.py"):
        home = PACKAGE / next(p for p in (path.name, path.name.replace("_", "/", 1)) if (PACKAGE / p).is_file())
        pairs = zip(path.read_text().splitlines(), home.read_text().splitlines(), strict=True)
        different = [there for there, here in pairs if there != here]
        assert all(line.lstrip().startswith("from .") and " import " in line for line in different), path


# Of what the package needs, what the endpoint does not: training, reports, limits of other methods; torch is there.
UNUSED = {"accelerate", "markupsafe", "psutil", "pygments", "torch"}


def test_requirements_are_those_of_the_package():
    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    lines = (PACKAGE / "assets" / "requirements.txt").read_text().splitlines()
    needed = {line for line in lines if not line.startswith("#")}
    assert needed < declared and {name.split(">")[0] for name in declared - needed} == UNUSED


def test_the_pipeline_is_named_as_its_task():
    assert list(CUSTOM_PIPELINES) == [TASK]


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder with a TraDe checkpoint"):
        remote_code.export(tmp_path, tmp_path / "out")


# ---------------------------------------------------------------- dictionaries


def test_a_dictionary_is_read_as_a_file(model):
    for given in ({**model.tensors, **model.metadata()}, {**model.tensors, "unembed/w": model.unembedding, **META}):
        read = to_weights(given)
        assert read.tensors.keys() == model.tensors.keys() and (read.unembedding == model.unembedding).all()
        assert (read.vocab, read.output_values) == (model.vocab, model.output_values)


META = {
    "vocab": ["a", "b", "c", "compiler_bos", "compiler_pad"],
    "max_seq_len": 4,
    "num_heads": 1,
    "output_encoding": "categorical",
    "output_values": [0, 1, 2, 3, 4],
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocab": None}, "vocab or --vocab .a token for each of the 5 rows .*; got none"),
        ({"num_heads": 0}, "expected a whole number above 0 for num_heads"),
        ({"token_embed/embeddings": [1, 2]}, r"expected Tracr's parameters \(token_embed/embeddings"),
        ({"vocab": [float("nan"), "b", "c", "compiler_bos", "compiler_pad"]}, "expected numbers and strings for vocab"),
        ({"vocab": ["compiler_bos", "compiler_pad"]}, "vocab or --vocab .a token for each of the 5 rows .*; got 2"),
        ({"vocab": [[[[[[[[[[1]]]]]]]]], "b", "c", "compiler_bos", "compiler_pad"]}, "expected numbers and strings"),
        ({"output_values": [0] * 5000}, "output_values has 5,000 values; the limit is 4,096"),
    ],
)
def test_a_bad_dictionary(model, changed, message):
    with pytest.raises(WeightsError, match=message):
        to_weights({**model.tensors, **model.metadata(), **changed})
