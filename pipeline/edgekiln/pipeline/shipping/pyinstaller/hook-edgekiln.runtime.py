"""The runtime imports what it needs by name, when it is first used: PyInstaller cannot see that in the code.

onnxruntime is taken where it is installed. Other engine libraries are larger than most programs: who wants one in his
program names it (``--collect-all openvino``).
"""

from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec

from PyInstaller.utils.hooks import collect_submodules, copy_metadata

from edgekiln.runtime.bundles.machine_kind import LIBRARIES

hiddenimports = collect_submodules("edgekiln.runtime")
datas = []
module, packages = LIBRARIES["onnxruntime-cpu"]
if find_spec(module) is not None:
    hiddenimports.append(module)
    for package in packages:
        try:
            datas += copy_metadata(
                package
            )  # its version is part of the kind of machine that a verdict holds for
        except PackageNotFoundError:
            continue
