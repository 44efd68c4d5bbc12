import contextlib
import hashlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tests_support import ROOT, TINY_RECIPE

from edgekiln.pipeline.cli import cli
from edgekiln.runtime.bundles.judged_with import describe_kind
from edgekiln.runtime.bundles.machine_kind import read_kind
from edgekiln.runtime.bundles.manifest import MANIFEST_NAME
from edgekiln.runtime.bundles.times import TIMES, MeasuredTime


def all_commands(group=cli, path=()):
    """(words, command) of every command and group."""
    yield path, group
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from all_commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(all_commands())
LEAVES = [path for path, command in COMMANDS.items() if not hasattr(command, "commands")]
each_command = pytest.mark.parametrize("path", LEAVES, ids=" ".join)

# -- help


def test_help_of_every_command_imports_nothing_heavy():
    code = (
        "import contextlib, io, json, sys\n"
        "from edgekiln.pipeline.cli import main\n"
        "for path in json.loads(sys.argv[1]):\n"
        "    out = io.StringIO()\n"
        "    with contextlib.redirect_stdout(out):\n"
        "        try: main([*path, '--help'])\n"
        "        except SystemExit as leave: assert not leave.code, path\n"
        "    assert out.getvalue().startswith('Usage: ' + ' '.join(['edgekiln', *path])), path\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'matplotlib', 'pydantic', 'timm', 'jinja2', 'PIL', 'numpy', 'rich',\n"
        "         'scipy', 'torchvision', 'cryptography'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    paths = json.dumps(list(COMMANDS))
    done = subprocess.run([sys.executable, "-c", code, paths], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")


@pytest.mark.parametrize("path", [path for path in COMMANDS if path], ids=" ".join)
def test_every_command_shows_an_example_and_the_shared_options(edgekiln, path):
    code, out, _ = edgekiln(*path, "--help")
    assert code == 0
    assert (
        f"  edgekiln {' '.join(path)} " in out
        or f"$(edgekiln {' '.join(path)} " in out
        or (f"  edgekiln {' '.join(path)}\n" in out)
    )
    for option in ("-q, --quiet", "-v, --verbose", "--debug", *(["--json"] if path in LEAVES else [])):
        assert f"  {option} " in out


def test_without_a_command_the_help_goes_to_stderr(edgekiln):
    code, out, err = edgekiln()
    assert (code, out) == (2, "")
    assert err.startswith("Usage: edgekiln ")
    assert edgekiln("cache")[2].startswith("Usage: edgekiln cache ")


# -- what every command does alike


@each_command
def test_an_unknown_option_is_one_document_with_json(edgekiln, path):
    code, out, err = edgekiln(*path, "--jsn", "--json")
    document = json.loads(out)
    assert (code, document["ok"], document["schema_version"], err) == (2, False, "1.0", "")
    assert {**document["error"], "message": None} == {
        "code": "usage",
        "message": None,
        "hint": f"See: edgekiln {' '.join(path)} --help",
        "path": None,
    }
    assert document["error"]["message"].startswith("No such option '--jsn'")
    assert "'--json'" in document["error"]["message"]  # suggested


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["quantise", "r.toml"], "No such command 'quantise'. Did you mean 'quantize'?"),
        (["recipe", "validaet"], "No such command 'validaet'. Did you mean 'validate'?"),
        (["cache", "xyz"], "No such command 'xyz'. There are: ls, prune."),
        (["run", "r.toml", "--dryrun"], "No such option '--dryrun'. (Did you mean one of: '--dry-run'"),
        (["run", "r.toml", "--until", "quantise"], "There is no stage 'quantise'"),
        (["run", "r.toml", "--until", "finetun"], "Did you mean 'finetune'?"),
        (["run", "r.toml", "--force", "evaluaet"], "Did you mean 'evaluate'?"),
        (
            ["quantize", "r.toml", "--variant", "in8"],
            "no variant 'in8'; it has: fp32, int8. Did you mean 'int8'?",
        ),
        (["build", "r.toml"], "The recipe has no variant whose engine is built."),
        (["build", "r.toml", "--sm", "86"], "--sm belong to a bundle; r.toml is a recipe."),
        (["build", "nowhere.toml"], "There is no bundle or recipe nowhere.toml."),
        (["build", ".", "--set", "seed=1", "--out", "x"], "--set, --force and --dry-run belong to a recipe"),
        (["build", "."], "Missing option '--out'."),
        (["bench", ".", "--runtime", "--dry-run"], "--dry-run belongs to a recipe."),
    ],
)
def test_typing_errors_name_what_was_meant(edgekiln, tmp_path, monkeypatch, arguments, advice):
    (tmp_path / "r.toml").write_text(TINY_RECIPE)
    monkeypatch.chdir(tmp_path)
    code, out, err = edgekiln(*arguments)
    assert (code, out) == (2, "")
    assert advice in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_shared_options_count_before_and_after_the_command(tiny_run, edgekiln, caplog):
    path, runs, _ = tiny_run
    for arguments in (["-q", "run", path], ["run", path, "-q"]):
        assert edgekiln(*arguments, "--runs", runs)[2] == ""
    assert "done before" in edgekiln("run", path, "--runs", runs)[2]


def test_json_counts_before_and_after_the_command(edgekiln):
    after = edgekiln("recipe", "schema", "--json")
    assert (after[0], json.loads(after[1])["ok"]) == (0, True)
    assert edgekiln("--json", "recipe", "schema") == edgekiln("recipe", "--json", "schema") == after


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_bug(closed):
    code = "from edgekiln.pipeline.cli import main; main()"
    command = f'"$0" -c "$1" recipe schema {closed}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (">&-" not in closed.split())


LOGGING = """
import logging, warnings, sys
import edgekiln.pipeline.cli.inspecting as inspecting
from edgekiln.pipeline.cli import main

def describe(path, trusted_keys):
    for level in (logging.DEBUG, logging.INFO, logging.ERROR):
        logging.getLogger("some.library").log(level, "said at %d", level)
    warnings.warn("old call", stacklevel=1)
    return {"kind": "nothing"}

inspecting.describe = describe
main()
"""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], {"said at 40"}),
        (["-v"], {"said at 20", "said at 40", "old call"}),
        (["--debug"], {"said at 10", "said at 20", "said at 40", "old call"}),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_logs_and_warnings_appear_when_asked_for(options, said, before):
    arguments = [*options, "inspect", "x"] if before else ["inspect", "x", *options]
    done = subprocess.run(
        [sys.executable, "-c", LOGGING, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout == "kind: nothing\n"
    assert {
        words for words in ("said at 10", "said at 20", "said at 40", "old call") if words in done.stderr
    } == said


def test_debug_shows_the_traceback_and_json_stays_one_document(tmp_path):
    code = "from edgekiln.pipeline.cli import main; main()"
    command = [sys.executable, "-c", code, "recipe", "validate", "none.toml", "--debug", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (2, "recipe")
    assert "Traceback (most recent call last)" in done.stderr
    assert "FileNotFoundError" in done.stderr


def test_a_terminal_gets_colours_unless_it_does_not_want_them(pictures, tmp_path):
    def escapes(**environment):
        """The escape sequences that a terminal on stderr gets."""
        terminal, end = pty.openpty()
        code = "from edgekiln.pipeline.cli import main; main()"
        command = [sys.executable, "-c", code, "init", pictures, "--force"]
        everything = {
            **{k: v for k, v in os.environ.items() if k != "NO_COLOR"},
            "TERM": "xterm",
            **environment,
        }
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=end, cwd=tmp_path, env=everything, check=True, text=True
        )
        os.close(end)
        assert "\x1b" not in done.stdout
        text = b""
        with contextlib.suppress(OSError):  # how Linux tells that nobody writes any more
            while part := os.read(terminal, 65536):
                text += part
        os.close(terminal)
        return set(re.findall(rb"\x1b\[[0-9;?]*[a-zA-Z]", text))

    def colours(found):
        return {sign for sign in found if sign.endswith(b"m")}

    assert colours(escapes())
    assert colours(escapes(NO_COLOR="1")) == set()
    assert escapes(TERM="dumb") == set()


def test_a_reader_that_goes_away_is_no_bug(tmp_path):
    code = "from edgekiln.pipeline.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "recipe", "schema"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (141, "")


def test_ctrl_c_counts_while_the_command_line_is_imported():
    code = """
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from edgekiln.pipeline.__main__ import start
start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        130,
        "edgekiln: Interrupted. Run the same command again to go on.\n",
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_asks_edgekiln(edgekiln, shell):
    code, out, _ = edgekiln("completion", shell)
    assert code == 0
    assert f"_EDGEKILN_COMPLETE={shell}_complete" in out
    assert json.loads(edgekiln("completion", shell, "--json")[1])["script"] == out.removesuffix("\n")


def test_completion_completes_commands():
    code = "from edgekiln.pipeline.cli import main; main()"
    environment = {
        **os.environ,
        "_EDGEKILN_COMPLETE": "bash_complete",
        "COMP_WORDS": "edgekiln re",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.splitlines() == ["plain,report", "plain,recipe"]


# -- run


def test_run_prints_the_table_on_stdout_and_progress_on_stderr(tiny_run, edgekiln):
    path, runs, _ = tiny_run
    code, out, err = edgekiln("run", path, "--runs", runs)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[:5]][2:] == ["PyTorch", "fp32", "int8"]
    assert "verdict" in out.splitlines()[0]
    assert f"bundle   {runs / 'tiny' / 'bundle'}" in out
    assert "[2/9] finetune: done before" in err


def test_run_json_is_one_document(tiny_run, edgekiln):
    path, runs, _ = tiny_run
    code, out, _ = edgekiln("run", path, "--runs", runs, "--json", "-q")
    document = json.loads(out)
    assert (code, document["ok"], document["schema_version"]) == (0, True, "1.0")
    assert [v["verdict"] for v in document["variants"]] == ["pass", "pass"]
    assert all(stage["cached"] for stage in document["stages"].values())


def test_failed_gate_exits_3_after_the_table(tiny_run, edgekiln, tmp_path):
    path, runs = tiny_run[0], shutil.copytree(tiny_run[1], tmp_path / "runs")
    strict = ("--set", "gate.max_drop=0.0001", "--runs", runs)
    code, out, err = edgekiln("run", path, *strict)
    assert code == 3
    assert "inconclusive" in out
    assert "2 required variants did not pass: fp32: inconclusive" in err
    code, out, _ = edgekiln("run", path, *strict, "--json", "-q")
    document = json.loads(out)
    assert (code, document["ok"], document["error"]["code"]) == (3, False, "gate")
    assert len(document["variants"]) == 2
    assert edgekiln("run", path, "--set", "gate.inconclusive=warn", *strict)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none.toml"], "There is no recipe none.toml"),
        (["run", "r.toml", "--set", "finetune.epoch=2"], "did you mean 'epochs'?"),
        (["run", "r.toml", "--until", "quantise"], "There is no stage 'quantise'"),
        (["run", "r.toml"], "There is no folder pictures"),
        (["run"], "Missing argument 'RECIPE'"),
        (["rum"], "No such command 'rum'"),
        (["run", "r.toml", "--untill", "x"], "No such option '--untill'"),
        (["predict", ".", "a.jpg"], "is no bundle: it has no manifest.json"),
        (["predict", "nowhere", "a.jpg"], "There is no folder nowhere"),
        (["inspect", "nowhere"], "There is no file or folder nowhere"),
        (["inspect", "r.toml"], "of no kind that edgekiln knows (ending .toml)"),
        (["bench", "nowhere", "--runtime"], "There is no folder nowhere"),
        (["bench", "."], "Missing option '--data'"),
    ],
)
def test_mistakes_exit_2_with_one_clear_line(edgekiln, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "r.toml").write_text(TINY_RECIPE)
    monkeypatch.chdir(tmp_path)
    code, out, err = edgekiln(*arguments)
    assert code == 2
    assert message in err.replace("'\n", "'")
    assert out == ""
    code, out, err = edgekiln(*arguments, "--json")
    document = json.loads(out)
    assert (code, document["ok"]) == (2, False)
    assert message in f"{document['error']['message']} {document['error']['hint']}"


def test_missing_extra_exits_5_with_the_install_line(edgekiln, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # what an absent package looks like to import
    code, _, err = edgekiln("run", ROOT / "recipes" / "traffic-lights.toml")
    assert code == 5
    assert "Run: pip install 'edgekiln[build]'" in err


def test_interrupt_exits_130_and_says_how_to_go_on(edgekiln, monkeypatch, tmp_path):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("edgekiln.pipeline.run.run_recipe", interrupt)
    code, _, err = edgekiln("run", ROOT / "recipes" / "traffic-lights.toml", "--runs", tmp_path)
    assert code == 130
    assert "Run the same command again to go on" in err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (OSError(28, "No space left on device", "runs/x"), 6, "No space is left for runs/x"),
        (PermissionError(13, "Permission denied", "runs/x"), 6, "runs/x cannot be written"),
        (MemoryError(), 6, "Out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), 6, "Out of memory"),
        (ZeroDivisionError("oops"), 1, "This is a bug in edgekiln: ZeroDivisionError: oops"),
    ],
)
def test_system_failures_have_their_exit_codes(edgekiln, monkeypatch, tmp_path, error, code, text):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("edgekiln.pipeline.run.run_recipe", fail)
    got, _, err = edgekiln("run", ROOT / "recipes" / "traffic-lights.toml", "--runs", tmp_path)
    assert got == code
    assert text in err


# -- predict


def test_predict_answers_and_names_what_it_could_not_read(tiny_run, edgekiln, tmp_path):
    path, _, result = tiny_run
    (tmp_path / "text.jpg").write_text("no picture")
    good = path.parent / "pictures" / "green" / "001.png"
    code, out, err = edgekiln("predict", result.bundle, good, tmp_path / "text.jpg", "--top", "2")
    assert code == 2
    [line] = out.splitlines()
    assert line.startswith(f"{good}  green ")
    assert len(line.split()) == 1 + 2 * 2
    assert "variant int8 (onnxruntime-cpu)" in err
    assert "text.jpg is not a JPEG" in err
    assert "1 of 2 pictures could not be read." in err


def test_predict_json(tiny_run, edgekiln, tmp_path):
    path, _, result = tiny_run
    good = path.parent / "pictures" / "blue" / "001.png"
    arguments = ("--variant", "fp32", "--threads", "1", "--json")
    code, out, _ = edgekiln("predict", result.bundle, good, tmp_path / "none.jpg", *arguments)
    document = json.loads(out)
    assert (code, document["ok"], document["variant"]["name"]) == (2, False, "fp32")
    assert document["predictions"][0]["top"][0]["label"] == "blue"
    assert document["failures"][0]["reason"] == "missing"


def test_swapped_class_names_are_noticed(tiny_run, edgekiln, tmp_path):
    bundle = shutil.copytree(tiny_run[2].bundle, tmp_path / "bundle")
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    manifest["contract"]["classes"].reverse()
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest))
    code, _, err = edgekiln("predict", bundle, "x.png")
    assert code == 4
    assert "the contract was changed" in err


def test_altered_bundle_exits_4_and_names_the_file(tiny_run, edgekiln, tmp_path):
    path, _, result = tiny_run
    bundle = shutil.copytree(result.bundle, tmp_path / "bundle")
    raw = bytearray((bundle / "int8.onnx").read_bytes())
    raw[1000] ^= 1
    (bundle / "int8.onnx").write_bytes(raw)
    code, _, err = edgekiln("predict", bundle, path.parent / "pictures" / "blue" / "001.png")
    assert code == 4
    assert "int8.onnx was changed" in err


# -- inspect


def test_inspect_tells_what_a_bundle_was_judged_with(tiny_run, edgekiln):
    document = json.loads(edgekiln("inspect", tiny_run[2].bundle, "--json")[1])
    for variant in document["variants"]:
        assert f"torch {version('torch')}, onnxruntime {version('onnxruntime')}" in variant["judged_with"]
        assert variant["judged_on"] == describe_kind(read_kind("onnxruntime-cpu").verdict)
        assert variant["measured"] == "not measured"


def test_inspect_tells_times_and_which_are_of_this_kind_of_machine(tiny_run, tmp_path, edgekiln):
    bundle = shutil.copytree(tiny_run[2].bundle, tmp_path / "bundle")
    document = json.loads((bundle / MANIFEST_NAME).read_text())
    here = MeasuredTime(read_kind("onnxruntime-cpu"), 1.9, 1.8, 2.0, 2, "valid", "2026-11-30T12:00:00+00:00")
    elsewhere = replace(
        here, kind=replace(here.kind, processor="Cortex-A76", cores=4.0), threads=4, p50_ms=1.85
    )
    document["variants"][0]["figures"][TIMES] = [elsewhere.to_dict(), here.to_dict()]
    (bundle / MANIFEST_NAME).write_text(json.dumps(document))
    told = json.loads(edgekiln("inspect", bundle, "--json")[1])["variants"][0]["measured"]
    first, second = told.split("; ")
    assert first == "1.85 ms, 4 threads on Cortex-A76, 4 cores"
    assert second.startswith("1.9 ms, 2 threads on ")
    assert second.endswith(" (this kind of machine)")


def test_inspect_bundle_onnx_and_checkpoint(tiny_run, edgekiln):
    _, _, result = tiny_run
    checkpoint = result.stages["finetune"].folder / "checkpoint.safetensors"
    kinds = {}
    for target in (result.bundle, result.bundle / "int8.onnx", checkpoint):
        code, out, _ = edgekiln("inspect", target, "--json")
        assert code == 0
        document = json.loads(out)
        kinds[document["kind"]] = document
        assert document["classes"] == ["blue", "green", "red"]
        assert edgekiln("inspect", target)[0] == 0
    assert kinds["bundle"]["variants"][1]["verdict"] == "pass"
    assert kinds["onnx"]["operators"]["Conv"] == 2
    assert kinds["checkpoint"]["backbone"] == "edgekiln/tiny-cnn"
    assert len({document["contract"] for document in kinds.values()}) == 1


def test_inspect_needs_neither_torch_nor_onnx(tiny_run):
    """A device that only runs engines has none of them."""
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'pydantic'): sys.modules[name] = None\n"
        "from edgekiln.pipeline.cli import main\n"
        "main(['inspect', sys.argv[1], '--json'])"
    )
    target = tiny_run[2].bundle / "int8.onnx"
    done = subprocess.run([sys.executable, "-c", code, target], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["classes"] == ["blue", "green", "red"]
    assert document["warnings"] == []  # none of its weights is -128


def test_inspect_of_somebody_elses_onnx_file_tells_what_can_be_told(edgekiln, tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
            helper.make_node("MatMulInteger", ["q", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["n", 4])],
        [numpy_helper.from_array(np.full((4, 4), -128, np.int8), "w")],
    )
    onnx.save(helper.make_model(graph, ir_version=10), tmp_path / "foreign.onnx")
    code, out, _ = edgekiln("inspect", tmp_path / "foreign.onnx")
    assert code == 0
    assert "contract: none: edgekiln did not export this file" in out
    assert "16 of its INT8 weights are -128. ARM cores without dot product" in out
    document = json.loads(edgekiln("inspect", tmp_path / "foreign.onnx", "--json")[1])
    assert document["operators"] == {"DynamicQuantizeLinear": 1, "MatMulInteger": 1}
    assert "classes" not in document


@pytest.mark.parametrize("name", ["x.onnx", "x.safetensors"])
def test_inspect_of_garbage_exits_4(edgekiln, tmp_path, name):
    (tmp_path / name).write_bytes(b"garbage garbage garbage")
    assert edgekiln("inspect", tmp_path / name)[0] == 4


# -- bench


@pytest.mark.slow
def test_bench_measures_a_recipe_and_the_runtime(tiny_run, edgekiln, tmp_path, monkeypatch):
    from edgekiln.benchmarks.costs import runtime_cost

    monkeypatch.setattr(runtime_cost, "_PROCESSES", 2)  # of each kind, where it takes seven
    path, runs, result = tiny_run[0], shutil.copytree(tiny_run[1], tmp_path / "runs"), tiny_run[2]
    brief = ("enabled=true", "processes=2", "blocks=2", "block_seconds=0.02", "side_blocks=1")
    quick = [f"benchmark.{k}" for k in brief]
    options = [part for value in quick for part in ("--set", value)]
    code, out, _ = edgekiln("bench", path, "--runs", runs, "--json", "-q", *options)
    document = json.loads(out)
    assert code == 0
    for engine in (document["baseline"], *document["variants"]):
        assert 0 < engine["latency"]["p50_ms"] < 1000
        assert engine["latency"]["boundary"] == "call"
    code, out, _ = edgekiln("bench", result.bundle, "--runtime", "--json")
    assert code == 0
    assert {"import_ms", "start_to_first_prediction_ms", "session_run_overhead_us"} <= set(json.loads(out))


def test_manifest_is_what_inspect_digests(tiny_run, edgekiln):
    bundle = tiny_run[2].bundle
    document = json.loads(edgekiln("inspect", bundle, "--json")[1])
    assert document["digest"] == hashlib.sha256((bundle / MANIFEST_NAME).read_bytes()).hexdigest()


# -- engines


def test_build_prints_what_came_of_it_and_its_json_is_one_document(tensorrt_run, edgekiln, tmp_path):
    bundle = tensorrt_run[2].bundle
    code, out, err = edgekiln(
        "build", bundle, "--variant", "rtx-fp16", "--out", tmp_path / "a", "--sm", "86,89"
    )
    assert code == 0
    assert out.splitlines()[0].startswith("rtx-fp16: unverified. built on this machine without pictures")
    assert out.splitlines()[-1] == f"bundle   {tmp_path / 'a'}"
    assert "building with tensorrt-rtx" in err
    code, out, _ = edgekiln("build", bundle, "--variant", "rtx-fp16", "--out", tmp_path / "b", "--json", "-q")
    document = json.loads(out)
    assert (code, document["ok"], document["bundle"]) == (0, True, str(tmp_path / "b"))
    assert document["variants"][0]["figures"]["audit"]["share"] == 1.0


def test_build_takes_a_profile_for_each_batch_and_the_cache_tells_them(tensorrt_run, edgekiln, tmp_path):
    ranges = ("--batch", "1,1,1", "--batch", "2,2,4")
    code, out, _ = edgekiln(
        "build",
        tensorrt_run[2].bundle,
        "--variant",
        "rtx-static",
        "--out",
        tmp_path / "c",
        "--json",
        "-q",
        *ranges,
    )
    (build,) = json.loads(out)["variants"][0]["figures"]["build"]["builds"].values()
    assert (code, [profile["max"] for profile in build["options"]["batch"]]) == (0, [1, 4])
    cached = json.loads(edgekiln("cache", "ls", "--json")[1])["engines"]
    assert "1,2-4" in {engine["batch"] for engine in cached}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--sm", "86;89"), "--sm 86;89: wanted whole numbers with commas between"),
        (("--batch", "1,8"), "--batch 1,8: wanted three numbers"),
        (("--batch", "1,1,8", "--batch", "1,1,8"), "Two batch profiles of an engine are the same"),
        (("--batch", "8,4,1"), "1 <= min <= opt <= max <= 1024, got 8, 4, 1"),
        (("--variant", "no"), "has no variant 'no'; it has: fp32"),
        (("--data", "/nowhere"), "There is no folder /nowhere"),
    ],
)
def test_build_refuses_what_cannot_be_meant(tensorrt_run, edgekiln, tmp_path, options, complaint):
    code, out, err = edgekiln("build", tensorrt_run[2].bundle, "--out", tmp_path / "out", *options)
    assert (code, out) == (2, "")
    assert complaint in err
    assert not (tmp_path / "out").exists()


def test_build_that_the_library_refuses_exits_5_with_its_words(tensorrt_run, edgekiln, tmp_path):
    code, _, err = edgekiln(
        "build", tensorrt_run[2].bundle, "--variant", "rtx-turing", "--out", tmp_path / "out"
    )
    assert code == 5
    assert "FP32 GEMM is not supported" in err
    assert "build an FP16 variant" in err


def test_inspect_tells_what_an_engine_is_and_whether_it_would_load(tensorrt_run, edgekiln, tmp_path):
    bundle = tensorrt_run[2].bundle
    code, out, _ = edgekiln("inspect", bundle / "rtx-static.b1.engine", "--json")
    document = json.loads(out)
    assert code == 0
    assert (document["flavour"], document["version"], document["capabilities"]) == (
        "tensorrt-rtx",
        "1.7.1.116",
        "86",
    )
    plan = bytearray((bundle / "rtx-static.b1.engine").read_bytes())
    plan[25] = 6
    (tmp_path / "old.engine").write_bytes(plan)
    _, out, _ = edgekiln("inspect", tmp_path / "old.engine")
    assert "loads_here: no: it was built by TensorRT-RTX 1.6.1.116 and runs with exactly that" in out
    (tmp_path / "no.engine").write_bytes(b"PK" + bytes(100))
    code, _, err = edgekiln("inspect", tmp_path / "no.engine")
    assert code == 4
    assert "This is no TensorRT engine" in err


def test_cache_lists_and_prunes(tensorrt_run, edgekiln, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKILN_CACHE", str(tmp_path / "cache"))
    assert edgekiln("cache", "ls")[1] == f"0 engines in {tmp_path / 'cache'}\n"
    edgekiln("build", tensorrt_run[2].bundle, "--variant", "rtx-fp16", "--out", tmp_path / "out")
    code, out, _ = edgekiln("cache", "ls")
    assert code == 0
    assert "tensorrt-rtx 1.7.1.116  fp16  batch 1,2-8  any GPU" in out
    assert len(json.loads(edgekiln("cache", "ls", "--json")[1])["engines"]) == 1
    assert edgekiln("cache", "prune")[0] == 2
    assert edgekiln("cache", "prune", "--older-than", "1")[1].startswith("0 engines removed")
    assert edgekiln("cache", "prune", "--all")[1].startswith("1 engine removed")
    assert edgekiln("cache", "ls")[1] == f"0 engines in {tmp_path / 'cache'}\n"


# -- report


def test_report_renders_again_what_the_run_wrote(tiny_run, edgekiln, tmp_path):
    bundle = tiny_run[2].bundle
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    for target in (bundle, bundle.parent, bundle / "report.json"):
        code, out, err = edgekiln("report", target)
        assert (code, err) == (0, "")
        assert out == before["report.html"].decode()
    code, out, _ = edgekiln("report", bundle, "--format", "card", "--out", tmp_path / "card.md")
    assert (code, out.strip()) == (0, str(tmp_path / "card.md"))
    assert (tmp_path / "card.md").read_bytes() == before["MODEL_CARD.md"]
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_report_as_json_and_markdown(tiny_run, edgekiln):
    code, out, _ = edgekiln("report", tiny_run[2].bundle, "--format", "markdown", "--json")
    document = json.loads(out)
    assert (code, document["ok"], document["format"], document["out"]) == (0, True, "markdown", None)
    assert [v["name"] for v in document["variants"]] == ["fp32", "int8"]
    assert document["text"].startswith("### tiny: All 2 required engines pass.")
    assert "](" not in document["text"]  # no links


def test_report_refuses_to_write_into_a_bundle_or_nowhere(tiny_run, edgekiln, tmp_path):
    bundle = tiny_run[2].bundle
    for out in (bundle / "new.html", tmp_path, tmp_path / "missing" / "report.html"):
        code, _, err = edgekiln("report", bundle, "--out", out)
        assert code == 2
        assert len(err.splitlines()) == 1
    assert not (bundle / "new.html").exists()


@pytest.mark.parametrize(
    ("edit", "code", "words"),
    [
        (lambda text: text[: len(text) // 2], 4, "cut off"),
        (
            lambda text: text.replace('"schema_version": "1.2"', '"schema_version": "2.0"'),
            4,
            "Update edgekiln",
        ),
        (lambda text: "[" * 100_000, 4, "no JSON that can be read"),
        (lambda text: "[]", 4, "is no report"),
        (lambda text: '{"schema_version": "1.0", "name": "x"}', 4, "is no whole report"),
        (lambda text: text.replace('"recall"', '"memory"'), 4, "cannot be rendered"),
        (lambda text: text.replace('"schema_version": "1.2"', '"schema_version": "1.9", "new": 1'), 0, ""),
    ],
)
def test_report_that_cannot_be_read_is_told_in_one_line(tiny_run, edgekiln, tmp_path, edit, code, words):
    text = (tiny_run[2].bundle / "report.json").read_text("utf-8")
    path = tmp_path / "report.json"
    path.write_text(edit(text), "utf-8")
    got, _, err = edgekiln("report", path)
    assert got == code
    assert words in err
    assert len(err.splitlines()) == (1 if code else 0)


def test_report_without_images_is_damaged_and_no_bug(tiny_run, edgekiln, tmp_path):
    values = json.loads((tiny_run[2].bundle / "report.json").read_text("utf-8"))
    for row in values["variants"]:
        row["counts"]["images"] = 0
    path = tmp_path / "report.json"
    path.write_text(json.dumps(values), "utf-8")
    code, _, err = edgekiln("report", path)
    assert code == 4
    assert "cannot be rendered, it lacks something: ZeroDivisionError" in err
    assert len(err.splitlines()) == 1


def test_report_of_a_zipped_bundle_is_the_bundles(tiny_run, edgekiln, tmp_path):
    from edgekiln.runtime.bundles.archive_writer import write_zip
    from edgekiln.runtime.bundles.bundle import open_bundle

    bundle = tiny_run[2].bundle
    write_zip(open_bundle(bundle), tmp_path / "bundle.zip")
    code, out, err = edgekiln("report", tmp_path / "bundle.zip")
    assert (code, err) == (0, "")
    assert out == (bundle / "report.html").read_text("utf-8")
    (tmp_path / "torn.zip").write_bytes((tmp_path / "bundle.zip").read_bytes()[:-40])
    assert edgekiln("report", tmp_path / "torn.zip")[0] == 4


def test_report_of_a_changed_bundle_or_of_nothing_is_refused(tiny_run, edgekiln, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_run[2].bundle, bundle)
    (bundle / "report.json").write_text((bundle / "report.json").read_text("utf-8").replace("pass", "fail"))
    assert edgekiln("report", bundle)[0] == 4
    assert edgekiln("report", tmp_path / "missing")[0] == 2
    (tmp_path / "empty").mkdir()
    assert edgekiln("report", tmp_path / "empty")[0] == 2


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--mlperf", "--runtime"), "give one of them"),
        (("--images", "photos"), "belong to --mlperf"),
        (("--runtime", "--threads", "2"), "belong to --mlperf"),
    ],
)
def test_bench_ignores_no_option(edgekiln, tiny_run, options, complaint):
    code, out, err = edgekiln("bench", tiny_run[2].bundle, *options)
    assert (code, out) == (2, "")
    assert complaint in err
