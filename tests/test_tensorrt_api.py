"""Every use of TensorRT's Python API in edgekiln exists in the real bindings of every release that is supported.

The table of symbols was taken from those bindings (see `trt_surface.py`); the slow test takes it from them again.
"""

import ast
import textwrap
from pathlib import Path

import pytest
import trt_surface
from trt_surface import FLAVOURS, UnavailableError, collect_surfaces, merge_surfaces, read_table, write_table
from trt_uses import CONVENTION, UNTYPED_RETURNS, find_problems, find_symbols

BUILDERS = ("10.3", "10.13", "10.16", "11.4", "rtx")
RUNNERS = (*BUILDERS, "lean")
# Each module that touches the library, and the flavours it must work with.
MODULES: dict[str, tuple[str, ...]] = {
    "export/edgekiln/export/engines/build_worker.py": BUILDERS,
    "export/edgekiln/export/engines/inspect_worker.py": BUILDERS,
    "export/edgekiln/export/engines/layer_times.py": BUILDERS,
    "runtime/edgekiln/runtime/backends/tensorrt_library.py": RUNNERS,
    "runtime/edgekiln/runtime/backends/kernel_cache.py": RUNNERS,
    "runtime/edgekiln/runtime/backends/tensorrt.py": RUNNERS,
    "runtime/edgekiln/runtime/backends/tensorrt_engine.py": RUNNERS,
    "pipeline/edgekiln/pipeline/gpu_suite/engines.py": RUNNERS,
}

ROOT = Path(__file__).parents[1]
TABLE = read_table()


def problems_of(code: str, supported: tuple[str, ...] = BUILDERS) -> list[str]:
    return find_problems(textwrap.dedent(code), TABLE, supported)


# ---------------------------------------------------------------------------------------- edgekiln's modules


@pytest.mark.parametrize("module", MODULES)
def test_module_uses_what_all_its_flavours_have(module):
    path = ROOT / module
    assert path.is_file(), f"{module} is listed in MODULES and is not there"
    source = path.read_text()
    assert find_symbols(source, TABLE), f"{module} uses nothing of the library under its name, trt"
    problems = find_problems(source, TABLE, MODULES[module])
    assert not problems, "\n".join([module, *problems])


def test_modules_that_name_the_library_are_listed():
    files = (
        path
        for layer in ("runtime", "export", "benchmarks", "pipeline")
        for path in ROOT.glob(f"{layer}/**/*.py")
    )
    found = {str(path.relative_to(ROOT)) for path in files if names_the_library(path.read_text())}
    assert found <= MODULES.keys()


def names_the_library(source: str) -> bool:
    names = (getattr(node, "attr", None) or getattr(node, "id", "") for node in ast.walk(ast.parse(source)))
    return "trt" in {name.lstrip("_") for name in names}


@pytest.mark.slow
def test_table_is_what_the_real_bindings_say():
    try:
        real = merge_surfaces(collect_surfaces())
    except UnavailableError as error:
        pytest.skip(f"the real bindings cannot be had: {error}")
    assert real["__version__"].forms == {flavour.name: flavour.version for flavour in FLAVOURS}
    sources = ((ROOT / module).read_text() for module in MODULES if (ROOT / module).is_file())
    used = set().union(*(find_symbols(source, TABLE) for source in sources))
    assert {name: TABLE.get(name) for name in used} == {name: real.get(name) for name in used}
    assert sorted(name for name in TABLE.keys() | real.keys() if TABLE.get(name) != real.get(name)) == []


# ---------------------------------------------------------------------------------------------- the table


def test_table_survives_being_written(tmp_path):
    write_table(TABLE, tmp_path / "table.tsv")
    assert (tmp_path / "table.tsv").read_bytes() == trt_surface.TABLE.read_bytes()


def test_table_of_other_releases_is_refused(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text(trt_surface.TABLE.read_text().replace("rtx=1.7.1.116", "rtx=1.6.1.120", 1))
    with pytest.raises(ValueError, match="other releases than FLAVOURS"):
        read_table(path)


def test_names_of_the_convention_and_of_untyped_methods_are_the_bindings_own():
    classes = {*CONVENTION.values(), *UNTYPED_RETURNS.values()}
    assert {name for name in classes if TABLE[name].kind != "class"} == set()
    assert {name for name in UNTYPED_RETURNS if " -> " in "".join(TABLE[name].forms.values())} == set()


@pytest.mark.parametrize(
    ("signature", "form"),
    [
        ("(self: tensorrt_bindings.tensorrt.Builder, flags: int = 0) -> None", "(self, flags=)"),
        (
            "(self: a.B, f: Callable[[int, str], None]) -> tensorrt_rtx_bindings.tensorrt_rtx.X",
            "(self, f) -> X",
        ),
        ("(self: a.B, kind: a.K = <K.STATIC: 0>, *, other: int) -> list[a.C]", "(self, kind=, *, other)"),
        ("(arg0: int, /) -> nvinfer1::IThing", "(arg0, /)"),
    ],
)
def test_signature_is_read_from_a_docstring(signature, form):
    assert trt_surface._strip_types(signature) == form


def test_wheel_that_does_not_exist_is_told_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(
        UnavailableError, match=r"No matching distribution found for tensorrt-cu12-bindings==10\.3\.0"
    ):
        trt_surface._download(FLAVOURS[0], tmp_path)


def test_missing_compiler_is_told_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"cc: .*No such file"):
        collect_surfaces()


# --------------------------------------------------------------------------------------------- the walker

RIGHT = """
    import tensorrt as trt

    class _Log(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.lines = []

        def log(self, severity, msg):
            self.lines.append(msg)

    def build(model: bytes):
        builder = trt.Builder(_Log())
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, _Log())
        if not parser.parse(model, path="model.onnx"):
            raise ValueError([parser.get_error(i).desc() for i in range(parser.num_errors)])
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        profile = builder.create_optimization_profile()
        profile.set_shape("x", min=(1, 3), opt=(8, 3), max=(32, 3))
        blob = builder.build_serialized_network(network, config)
        return bytes(blob), blob.nbytes

    class Session:
        def __init__(self, trt, plan):
            self._trt = trt
            self._runtime = trt.Runtime(_Log())
            self._runtime.engine_host_code_allowed = False
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            self._contexts = [self._engine.create_execution_context() for _ in range(2)]

        def run(self, stream):
            modes = self._trt.TensorIOMode
            for i in range(self._engine.num_io_tensors):
                name = self._engine.get_tensor_name(i)
                if self._engine.get_tensor_mode(name) == modes.INPUT:
                    print(self._engine.get_tensor_dtype(name).name, self._engine.name.upper())
            return self._contexts[0].execute_async_v3(stream_handle=int(stream))
"""


def test_right_code_has_no_problems():
    assert problems_of(RIGHT) == []


def test_symbols_found_are_all_the_code_uses():
    symbols = find_symbols(textwrap.dedent(RIGHT), TABLE)
    assert {
        "Builder",
        "ILogger.log",
        "ParserError.desc",
        "IHostMemory.nbytes",
        "TensorIOMode.INPUT",
        "IExecutionContext.execute_async_v3",
    } < symbols
    assert "DataType.name" not in symbols


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("trt.BuilderFlag.FP61", "line 1: BuilderFlag.FP61: absent (10.3, 10.13, 10.16, 11.4, rtx)"),
        ("trt.BuilderFlag.FP16", "BuilderFlag.FP16: absent (11.4, rtx); ask with hasattr"),
        ("getattr(trt.BuilderFlag, 'FP16')", "BuilderFlag.FP16: absent (11.4, rtx); ask"),
        ("getattr(trt.BuilderFlag, 'FP61', None)", "BuilderFlag.FP61 is in none of 10.3,"),
        (
            "getattr(trt.ComputeCapability, 'SM86', None)",
            "ComputeCapability: absent (10.3, 10.13, 10.16, 11.4); ask",
        ),
        ("self._engine.num_bindings", "ICudaEngine.num_bindings: absent"),
        ("self._engine.get_binding_name(0)", "ICudaEngine.get_binding_name: absent"),
        ("slot.context.execute_async_v2([], 0)", "IExecutionContext.execute_async_v2: absent"),
        ("slots[0].contexts[1].execute_async_v2([], 0)", "IExecutionContext.execute_async_v2: absent"),
        ("builder.create_network(flag=1)", "arguments do not fit (self, flags=)"),
        ("builder.create_network(1, 2)", "arguments do not fit (self, flags=)"),
        ("builder.create_network(1, flags=2)", "arguments do not fit (self, flags=)"),
        (
            "builder.build_serialized_network(network)",
            "do not fit (self, network, config) -> IHostMemory (10.3, rtx)",
        ),
        ("trt.Runtime()", "Runtime: arguments do not fit"),
        ("trt.Runtime(log).max_thread", "Runtime.max_thread: absent"),
        ("trt.ILogger.__init__()", "ILogger.__init__: arguments do not fit (self)"),
        (
            "engine.create_execution_context(runtime_config=None)",
            "do not fit (self, strategy=) -> IExecutionContext (10.3); ask",
        ),
        ("engine.serialize_with_config(arg0=1)", "arguments do not fit (self, arg0)"),
        ("engine.num_io_tensors()", "is a property, not a method"),
        ("engine.num_io_tensors = 3", "ICudaEngine.num_io_tensors: cannot be set"),
        ("engine.fast = True", "ICudaEngine.fast: absent"),
        ("flags = trt.BuilderFlag\nflags.FP61", "line 2: BuilderFlag.FP61: absent"),
        ("reset = builder.reset\nreset(1)", "line 2: Builder.reset: arguments do not fit (self)"),
        ("it = network.add_identity(tensor)\nit.kernel", "IIdentityLayer.kernel: absent"),
        ("ctx = engine.create_execution_context()", "ctx holds a IExecutionContext: name it context"),
        ("self._rt = trt.Runtime(log)", "self._rt holds a Runtime: name it runtime"),
        ("import tensorrt", "import tensorrt as trt"),
        ("from tensorrt import Builder", "import tensorrt as trt, not names"),
        (
            "class P(trt.IProgressMonitor):\n    def phase_begin(self, name): ...",
            "IProgressMonitor.phase_begin: absent",
        ),
        (
            "class L(trt.ILogger):\n    def log(self, msg): ...",
            "ILogger.log: arguments do not fit (self, severity, msg)",
        ),
    ],
)
def test_wrong_code_is_found(code, problem):
    (found,) = problems_of(code)
    assert problem in found


@pytest.mark.parametrize(
    "code",
    [
        "builder.create_network(*flags)",
        "builder.build_serialized_network(network, **more)",
        "import edgekiln.runtime\nedgekiln.runtime.load('bundle')",
        "from edgekiln import runtime\nruntime.load('bundle')",
        "print(trt.DataType.FLOAT.name, trt.__version__, trt.BuilderFlag.__members__)",
        "def choose(config):\n    config = dict\n    return config",
        "config = read(path)",
        "class P(trt.IProgressMonitor):\n    def phase_start(self, *names): ...\n    def _count(self): ...",
    ],
)
def test_right_code_of_rare_shapes_has_no_problems(code):
    assert problems_of(code) == []


GUARDED = {
    "getattr of a member": """
        def choose(config):
            flag = getattr(trt.BuilderFlag, "FP16", None)
            if flag is not None:
                config.set_flag(trt.BuilderFlag.FP16)
    """,
    "another symbol of the same flavours": """
        def target(config):
            if hasattr(config, "set_compute_capability"):
                config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    """,
    "a keyword of newer flavours": """
        def open_context(engine):
            if not hasattr(engine, "create_runtime_config"):
                return engine.create_execution_context()
            runtime_config = engine.create_runtime_config()
            return engine.create_execution_context(runtime_config=runtime_config)
    """,
    "a class that is held": """
        def target(name):
            kinds = getattr(trt, "ComputeCapability", None)
            return kinds and kinds.SM86
    """,
    "a method that is held": """
        def target(config):
            if set_capability := getattr(config, "set_compute_capability", None):
                set_capability(1, 0)
    """,
    "a predicate": """
        def has_cache(runtime_config):
            return hasattr(runtime_config, "create_runtime_cache")
        def keep(runtime_config):
            if has_cache(runtime_config):
                runtime_cache = runtime_config.create_runtime_cache()
                runtime_config.set_runtime_cache(runtime_cache)
    """,
    "an attribute": """
        class Session:
            def __init__(self, runtime_config):
                self._has_cache = hasattr(runtime_config, "create_runtime_cache")
            def keep(self, runtime_config):
                return runtime_config.create_runtime_cache() if self._has_cache else None
    """,
    "a function that returns a guard": """
        def find_capability(name):
            return getattr(trt, "ComputeCapability", None)
        def target(config):
            if find_capability("x"):
                config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    """,
    "a guard around": """
        def outer(config):
            if hasattr(config, "set_compute_capability"):
                def inner():
                    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    """,
}


@pytest.mark.parametrize("code", GUARDED.values(), ids=GUARDED)
def test_guarded_use_may_be_of_some_flavours_only(code):
    assert problems_of(code) == []


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (
            # Another function's guard says nothing here.
            """
            def ask():
                if hasattr(config, "set_compute_capability"):
                    print("rtx")
            def target():
                ask()
                config.set_compute_capability(1, 0)
            """,
            "line 7: IBuilderConfig.set_compute_capability: absent (10.3,",
        ),
        (
            # Nor does a guard that lets in flavours without the symbol.
            """
            def target(engine, config):
                if hasattr(engine, "create_runtime_config"):
                    config.set_compute_capability(1, 0)
            """,
            "IBuilderConfig.set_compute_capability: absent (10.3,",
        ),
        (
            # A guard does not make wrong arguments right.
            """
            def target(config):
                if hasattr(config, "set_compute_capability"):
                    config.set_compute_capability(1, 2, 3)
            """,
            "absent (10.3, 10.13, 10.16, 11.4); arguments do not fit",
        ),
        (
            """
            class Session:
                def __init__(self, runtime_config):
                    self._has_cache = hasattr(runtime_config, "create_runtime_cache")
                def keep(self, runtime_config):
                    return runtime_config.create_runtime_cache()
            """,
            "IRuntimeConfig.create_runtime_cache: absent",
        ),
    ],
)
def test_guard_elsewhere_or_of_something_else_is_none(code, problem):
    (found,) = problems_of(code)
    assert problem in found


def test_lean_runtime_has_no_builder():
    assert problems_of("trt.Builder(log)", RUNNERS) == [
        "line 1: Builder: absent (lean); ask with hasattr or getattr in the same function"
    ]
    assert problems_of("trt.Runtime(log)", RUNNERS) == []
