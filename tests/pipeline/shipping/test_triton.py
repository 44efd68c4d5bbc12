"""``edgekiln pack --triton``: what is written is what Triton's own protobuf and client take."""

import json
import shutil

import numpy as np
import pytest
from documents import fences
from tests_support import ROOT

import edgekiln.runtime as ek
from edgekiln.pipeline.shipping.triton.repository import TritonWish, pack_for_triton
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.manifest import write_manifest
from edgekiln.runtime.bundles.source import hash_file
from edgekiln.runtime.errors import UsageError

pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
from triton_support import ServedModel, Server, parse_config


@pytest.fixture
def bundle(tiny_run):
    return open_bundle(tiny_run[2].bundle)


def change_manifest(source, folder, change):
    """A copy of a bundle with another manifest."""
    shutil.copytree(source, folder)
    document = json.loads((folder / "manifest.json").read_text())
    for key in ("files", "schema_version"):
        del document[key]
    change(document)
    write_manifest(folder, document)
    return open_bundle(folder)


# -- ONNX


def test_model_is_what_tritons_protobuf_and_the_onnx_file_say(bundle, tmp_path):
    [packed], notices = pack_for_triton(bundle, tmp_path / "models", TritonWish())
    assert packed.folder == tmp_path / "models" / "tiny"
    assert sorted(p.name for p in packed.folder.iterdir()) == [
        "1", "README.md", "config.pbtxt", "contract.json", "labels.txt", "warmup",
    ]  # fmt: skip
    served = ServedModel(packed.folder)  # checks names, types and shapes against the file, and warms up
    config = served.config
    assert hash_file(packed.folder / "1" / "model.onnx")[0] == bundle.files["int8.onnx"].sha256
    assert (config.max_batch_size, config.platform) == (8, "onnxruntime_onnx")
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000
    assert [(g.count, g.kind) for g in config.instance_group] == [(1, g_kind("KIND_CPU"))]
    assert served.labels == list(bundle.contract.classes)
    assert served.batches == [1, 8]
    assert notices == ["warm-up with 2 pictures of the run's val split"]
    assert ek.Contract.from_json((packed.folder / "contract.json").read_text()) == bundle.contract
    assert bundle.digest in (packed.folder / "config.pbtxt").read_text()


def g_kind(name):
    from tritonclient.grpc import model_config_pb2

    return model_config_pb2.ModelInstanceGroup.Kind.Value(name)


def test_options_reach_the_config(edgekiln, bundle, tmp_path):
    code, out, _ = edgekiln(
        "pack", bundle.path, "--triton", tmp_path, "--variant", "fp32", "--name", "lights", "--max-batch", 3,
        "--queue-delay-us", 250, "--instances", 2, "--warmup", "none", "--json",
    )  # fmt: skip
    document = json.loads(out)
    assert code == 0
    assert document["models"][0]["file"] == "fp32.onnx"
    config = parse_config(tmp_path / "lights")
    assert (config.max_batch_size, config.instance_group[0].count) == (3, 2)
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    assert not config.model_warmup
    assert not (tmp_path / "lights" / "warmup").exists()
    assert document["notices"] == ["no warm-up: the first requests are slow"]


def test_packing_twice_gives_the_same_bytes_and_never_replaces(edgekiln, bundle, tmp_path):
    for name in "ab":
        assert edgekiln("pack", bundle.path, "--triton", tmp_path / name)[0] == 0
    files = [sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*")) for n in "ab"]
    assert files[0] == files[1]
    for path in files[0]:
        if (tmp_path / "a" / path).is_file():
            assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    code, _, err = edgekiln("pack", bundle.path, "--triton", tmp_path / "a")
    assert code == 2
    assert "tiny exists. Give another name with --name" in err


def test_class_names_with_every_sign_stand_in_their_lines(bundle, tmp_path):
    names = ['red: "deep"', "grün\\blau", "back`tick #1"]

    def rename(document):
        document["contract"]["classes"] = names
        del document["contract_digest"]

    named = change_manifest(bundle.path, tmp_path / "bundle", rename)
    [packed], _ = pack_for_triton(named, tmp_path / "models", TritonWish())
    assert ServedModel(packed.folder).labels == names

    def break_line(document):
        rename(document)
        document["contract"]["classes"] = ["a\nb", "c", "d"]

    broken = change_manifest(bundle.path, tmp_path / "broken", break_line)
    with pytest.raises(UsageError, match="A class name holds a line break"):
        pack_for_triton(broken, tmp_path / "models", TritonWish(name="other"))


# -- warm-up pictures


def raw(folder, number=0):
    config = parse_config(folder)
    return np.fromfile(folder / "warmup" / f"picture-{number}.raw", np.uint8).reshape(config.input[0].dims)


def test_warm_up_shows_the_pictures_of_the_val_split_or_those_given(tiny_run, bundle, tmp_path):
    [packed], _ = pack_for_triton(bundle, tmp_path, TritonWish())
    val = np.load(tiny_run[2].stages["data"].folder / "val.npy")
    assert np.array_equal(raw(packed.folder), val[0])
    assert np.array_equal(raw(packed.folder, 1), val[1])
    picture = next((tiny_run[0].parent / "pictures" / "red").iterdir())
    [packed], notices = pack_for_triton(bundle, tmp_path, TritonWish(name="given", pictures=(picture,)))
    assert np.array_equal(raw(packed.folder), ek.prepare(picture, bundle.contract))
    assert np.array_equal(raw(packed.folder, 1), raw(packed.folder))  # one picture serves both samples
    assert notices == ["warm-up with 1 of the pictures that were given"]


def test_a_bundle_away_from_its_run_warms_up_with_random_values_and_says_so(edgekiln, bundle, tmp_path):
    away = shutil.copytree(bundle.path, tmp_path / "away")
    code, out, _ = edgekiln("pack", away, "--triton", tmp_path / "models")
    assert code == 0
    assert (
        "warm-up with random values: no pictures were given, and the run that made the bundle is not here"
        in out
    )
    served = ServedModel(tmp_path / "models" / "tiny")
    assert [s.inputs["image"].random_data for s in served.config.model_warmup] == [True, True]
    assert not (tmp_path / "models" / "tiny" / "warmup").exists()
    code, _, err = edgekiln("pack", away, "--triton", tmp_path / "other", "--warmup", "real")
    assert code == 2
    assert "Give some with --picture FILE" in err


def test_a_recipe_that_hides_its_pictures_hides_them_here(edgekiln, tiny_run, bundle, tmp_path):
    def hide(document):
        document["provenance"]["recipe"]["report"] = {"images": False}

    run = tmp_path / "run"  # with the stages beside the bundle: it is not for want of pictures
    (run / "stages").mkdir(parents=True)
    (run / "stages" / "data").symlink_to(
        tiny_run[2].stages["data"].folder.parents[1], target_is_directory=True
    )
    hidden = change_manifest(bundle.path, run / "bundle", hide)
    code, out, _ = edgekiln("pack", hidden.path, "--triton", tmp_path / "models")
    assert code == 0
    assert "the recipe keeps its pictures to itself" in out
    assert not (tmp_path / "models" / "tiny" / "warmup").exists()
    picture = next((tiny_run[0].parent / "pictures" / "red").iterdir())
    for more in (["--warmup", "real"], ["--picture", picture]):
        code, _, err = edgekiln("pack", hidden.path, "--triton", tmp_path / "no", *more)
        assert code == 2
        assert "Take --warmup random" in err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("key", ["../../../elsewhere", "", 7, "A" * 16])
def test_a_manifest_leads_nowhere_but_to_its_own_run(bundle, tmp_path, key):
    def lead(document):
        document["provenance"]["parents"]["data"] = key

    led = change_manifest(bundle.path, tmp_path / "run" / "bundle", lead)
    _, notices = pack_for_triton(led, tmp_path / "models", TritonWish())
    assert "the run that made the bundle is not here" in notices[0]


# -- what Triton cannot serve, and TensorRT plans


def with_engine(backend, batches, verdict="pass", file_bytes=None):
    """Change a manifest so that its variant fp32 is an engine of ``backend``, built for ``batches``."""

    def change(document):
        [row] = [v for v in document["variants"] if v["name"] == "fp32"]
        files = list(batches)
        row.update(backend=backend, precision="fp16", files=files, file=files[0], verdict=verdict)
        row["figures"]["build"] = {"builds": {f: {"options": {"batch": b}} for f, b in batches.items()}}

    return change


def plan_bundle(bundle, folder, batches, backend="tensorrt"):
    """A bundle with plans: a header of TensorRT 10.16.1, which is all that is read of them here."""
    shutil.copytree(bundle.path, folder / "raw")
    for number, file in enumerate(batches):
        head = b"ftrt".ljust(24, b"\0") + bytes([10, 16, 1, 11])
        (folder / "raw" / file).write_bytes(head.ljust(64, b"\0") + bytes([number]))
    return change_manifest(folder / "raw", folder / "bundle", with_engine(backend, batches))


def test_a_plan_says_its_version_and_takes_the_batches_it_was_built_for(bundle, tmp_path):
    plans = plan_bundle(bundle, tmp_path, {"fp32.engine": {"min": 1, "opt": 4, "max": 16}})
    [packed], notices = pack_for_triton(plans, tmp_path / "models", TritonWish(variant="fp32"))
    config = parse_config(packed.folder)
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 16)
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert config.instance_group[0].kind == g_kind("KIND_GPU")
    assert (packed.folder / "1" / "model.plan").read_bytes() == plans.read("fp32.engine")
    for name in ("config.pbtxt", "README.md"):
        assert "TensorRT 10.16.1.11: take the Triton release" in (packed.folder / name).read_text()
    assert "fp32 was not tried, as it cannot run here" in notices[0]
    with pytest.raises(UsageError, match="built for batches of up to 16, got --max-batch 17"):
        pack_for_triton(plans, tmp_path / "models", TritonWish(variant="fp32", name="b", max_batch=17))


def test_triton_is_told_of_every_profile_of_an_engine(bundle, tmp_path):
    ranges = ({"min": 1, "opt": 1, "max": 1}, {"min": 2, "opt": 8, "max": 16})
    plans = plan_bundle(bundle, tmp_path, {"fp32.engine": list(ranges)})
    [packed], _ = pack_for_triton(plans, tmp_path / "models", TritonWish(variant="fp32"))
    config = parse_config(packed.folder)
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert (config.max_batch_size, list(config.dynamic_batching.preferred_batch_size)) == (16, [1, 8])
    gap = plan_bundle(bundle, tmp_path / "gap", {"fp32.engine": [ranges[0], {"min": 4, "opt": 8, "max": 16}]})
    with pytest.raises(
        UsageError, match="takes no batch of 2, and Triton sends requests of every size up to 16"
    ):
        pack_for_triton(gap, tmp_path / "others", TritonWish(variant="fp32"))


def test_static_engines_become_a_model_each_without_batching(tiny_run, bundle, tmp_path):
    sizes = {f"fp32.b{n}.engine": {"min": n, "opt": n, "max": n} for n in (1, 4)}
    plans = plan_bundle(bundle, tmp_path, sizes)
    pictures = tuple(sorted((tiny_run[0].parent / "pictures" / "red").iterdir())[:3])
    wish = TritonWish(variant="fp32", pictures=pictures)
    packed, notices = pack_for_triton(plans, tmp_path / "models", wish)
    assert [model.name for model in packed] == ["tiny-b1", "tiny-b4"]
    for model, size in zip(packed, (1, 4), strict=True):
        config = parse_config(model.folder)
        assert config.max_batch_size == 0
        assert not config.HasField("dynamic_batching")
        assert list(config.input[0].dims) == [size, 32, 32, 3]
        assert list(config.output[0].dims) == [size, 3]
        [sample] = config.model_warmup
        assert sample.batch_size == 1  # one request, whose data is the whole batch
        shown = [ek.prepare(pictures[i % 3], bundle.contract) for i in range(size)]
        assert np.array_equal(raw(model.folder), shown)
    assert "Triton forms none" in notices[-1]


@pytest.mark.parametrize(
    ("backend", "remedy"),
    [
        ("tensorrt-rtx", "add a variant with backend = 'tensorrt' to the recipe, or take one of onnxruntime"),
        ("openvino", "Take the onnxruntime-cpu variant of the same precision"),
    ],
)
def test_what_triton_does_not_serve_is_refused_with_the_remedy(edgekiln, bundle, tmp_path, backend, remedy):
    def change(document):
        [row] = [v for v in document["variants"] if v["name"] == "fp32"]
        row.update(backend=backend)

    other = change_manifest(bundle.path, tmp_path / "bundle", change)
    code, _, err = edgekiln("pack", other.path, "--triton", tmp_path / "models", "--variant", "fp32")
    assert code == 2
    assert f"Triton cannot serve variant 'fp32': it is for {backend}" in err
    assert remedy in err
    assert edgekiln("pack", other.path, "--triton", tmp_path / "models")[0] == 0  # takes the other one
    assert parse_config(tmp_path / "models" / "tiny").platform == "onnxruntime_onnx"


def test_what_did_not_pass_needs_to_be_asked_for(edgekiln, bundle, tmp_path):
    def fail(document):
        for row in document["variants"]:
            row.update(verdict="fail", reason="too bad")

    failed = change_manifest(bundle.path, tmp_path / "bundle", fail)
    code, _, err = edgekiln("pack", failed.path, "--triton", tmp_path / "m")
    assert code == 2
    assert "int8 on onnxruntime-cpu: fail" in err
    code, _, err = edgekiln("pack", failed.path, "--triton", tmp_path / "m", "--variant", "int8")
    assert code == 2
    assert "--allow-unverified" in err
    arguments = ("pack", failed.path, "--triton", tmp_path / "m", "--variant", "int8", "--allow-unverified")
    assert edgekiln(*arguments)[0] == 0


def test_a_model_that_is_not_the_contracts_is_refused(bundle, tmp_path):
    def lie(document):
        document["contract"]["classes"].append("purple")
        del document["contract_digest"]
        for variant in document["variants"]:  # they would tell the lie first
            del variant["canaries"]

    liar = change_manifest(bundle.path, tmp_path / "bundle", lie)
    with pytest.raises(UsageError, match=r"gives 3 logits; the bundle's contract says 32 x 32 and 4"):
        pack_for_triton(liar, tmp_path / "models", TritonWish())
    assert not (tmp_path / "models").exists()


def test_a_place_that_cannot_be_written_is_named(edgekiln, bundle, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, _ = edgekiln("pack", bundle.path, "--triton", tmp_path / "file" / "models", "--json")
    error = json.loads(out)["error"]
    assert (code, error["code"]) == (6, "resources")
    assert str(tmp_path / "file") in error["path"]
    assert "--triton" in error["hint"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--triton", "models", "--set", "seed=1"], "--set is for recipes."),
        (["--triton", "models", "--runs", "elsewhere"], "--runs is for recipes."),
        (["--max-batch", "4"], "--max-batch goes with --triton."),
        (["--trusted-key", "k.pub"], "--trusted-key goes with --triton or --vectors."),
        (["--vectors", "v", "--triton", "models"], "--triton and --vectors are two uses."),
        (["--vectors", "v", "--name", "n"], "--name goes with --triton."),
        (["--vectors", "v", "--force", "data"], "--force is for recipes."),
    ],
)
def test_an_option_of_the_other_use_is_refused(edgekiln, bundle, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    code, _, err = edgekiln("pack", bundle.path, *words)
    assert code == 2
    assert says in err
    assert list(tmp_path.iterdir()) == []


# -- the client


def test_the_documents_client_gets_the_bundles_answers(tiny_run, bundle, tmp_path, monkeypatch, capsys):
    [client] = fences(ROOT / "docs" / "triton.md", "python")
    pack_for_triton(bundle, tmp_path / "models", TritonWish(name="traffic-lights"))
    picture = sorted((tiny_run[0].parent / "pictures" / "green").iterdir())[3]
    shutil.copy(picture, tmp_path / "photo.jpg")  # a PNG by content, which is what decides
    monkeypatch.chdir(tmp_path)
    with Server(tmp_path / "models") as server:
        exec(client.body.replace("localhost:8001", f"127.0.0.1:{server.port}"), {"__name__": "__main__"})
        assert server.service.seen == [(1, 32, 32, 3)] * 2
    told = json.loads(capsys.readouterr().out)
    with ek.load(bundle.path) as classifier:
        prediction = classifier.predict(picture)
        logits = classifier.session.run(ek.prepare(picture, bundle.contract)[None])[0]
    assert told["labels"] == [prediction.label]
    order = np.argsort(-logits)[:2]
    assert [entry[1:] for entry in told["best"]] == [[str(i), bundle.contract.classes[i]] for i in order]
    assert [float(entry[0]) for entry in told["best"]] == pytest.approx(logits[order].tolist(), abs=1e-4)


def test_more_than_the_largest_batch_is_refused_by_the_protocol(bundle, tmp_path):
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    pack_for_triton(bundle, tmp_path / "models", TritonWish(max_batch=2))
    image = triton.InferInput("image", [3, 32, 32, 3], "UINT8")
    image.set_data_from_numpy(np.zeros((3, 32, 32, 3), np.uint8))
    with (
        Server(tmp_path / "models") as server,
        triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client,
        pytest.raises(InferenceServerException, match="batch-size must be <= 2"),
    ):
        client.infer("tiny", [image], outputs=[triton.InferRequestedOutput("logits")])
