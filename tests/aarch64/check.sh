#!/usr/bin/env bash
# `make aarch64`: the runtime on emulated ARM processors, on an x86-64 Linux. See CONTRIBUTING.md.
#
#   tests/aarch64/check.sh BUNDLE WORK
#
# PYTHON: one with edgekiln's dev dependencies. CPUS: qemu's names. TESTS: files below tests/runtime, "" for none.
# Where there is no BUNDLE, the demo's is made, without training. The last of CPUS is a device over ssh too (fleet.py).
# WORK keeps what was fetched. Debian's packages and PyPI's wheels are fetched there, nothing is installed, and no root
# is needed where user namespaces are allowed. Emulation proves what is computed; it proves no speed.
# Exits 0 where all agree, 1 where something does not, 5 where the machine cannot do it.
set -euo pipefail
cd "$(dirname "$0")/../.."
bundle=$1 work=$2
PYTHON=${PYTHON:-python3}
CPUS=${CPUS:-cortex-a53 cortex-a72 neoverse-n1 max}
# What needs neither torch nor torchvision.
TESTS=${TESTS-test_contract.py onnx_files/test_summary.py pictures/test_encoded.py bundles/test_canary_inputs.py}
say() { echo "[$(date +%T)] $*"; }
skip() { echo "SKIPPED: $*" >&2; exit 5; }

[ "$(uname -sm)" = "Linux x86_64" ] || skip "this is $(uname -sm); the emulation is for Linux on x86-64"
command -v dpkg apt-get >/dev/null || skip "dpkg and apt-get are not here: it needs Debian or Ubuntu"
unshare --user --map-root-user --mount --pid --fork sh -c 'mount -t proc proc /proc && mount -t binfmt_misc b /proc/sys/fs/binfmt_misc' \
  2>/dev/null || skip "no binfmt_misc in a user namespace: it needs Linux 6.7 or newer, and unprivileged user namespaces"
mkdir -p "$work"
work=$(realpath "$work") root=$(realpath "$work")/root

if [ ! -e "$work/tools.done" ]; then
  say "qemu, unpacked into $work/tools"
  mkdir -p "$work/debs"
  (cd "$work/debs" && apt-get download -q qemu-user-static) >"$work/qemu.log" 2>&1 ||
    skip "apt-get cannot download qemu-user-static (run apt-get update first): see $work/qemu.log"
  dpkg -x "$work"/debs/qemu-user-static_*.deb "$work/tools"
  touch "$work/tools.done"
fi
qemu=$work/tools/usr/bin/qemu-aarch64-static

if [ ! -e "$work/root.done" ]; then
  say "Debian 12 for arm64, by an apt with folders of its own; unpacked and not configured, which would take minutes"
  mkdir -p "$work"/apt/{state/lists/partial,cache/archives/partial} && : >"$work/apt/status"
  echo 'deb http://deb.debian.org/debian bookworm main' >"$work/apt/sources.list"
  cat >"$work/apt/apt.conf" <<CONF
APT { Architecture "arm64"; Architectures { "arm64"; }; Install-Recommends "false"; Sandbox::User "$(id -un)"; };
Dir { State "$work/apt/state"; State::status "$work/apt/status"; Cache "$work/apt/cache"; };
Dir::Etc { sourcelist "$work/apt/sources.list"; sourceparts "-"; };
Acquire::Languages "none";
CONF
  (export APT_CONFIG=$work/apt/apt.conf
   apt-get update -q && apt-get install -q -y --download-only python3 libstdc++6 libgomp1 coreutils dash) \
    >"$work/apt.log" 2>&1 || skip "Debian's packages for arm64 cannot be downloaded: see $work/apt.log"
  rm -rf "$root"
  for deb in "$work"/apt/cache/archives/*.deb; do dpkg -x "$deb" "$root"; done
  mkdir -p "$root"/{dev,proc,sys,tmp,root,opt/cpuinfo,opt/sys/devices/system/cpu}
  for file in possible present online; do echo 0-1 >"$root/opt/sys/devices/system/cpu/$file"; done
  rm -f "$work/pins.txt"
  touch "$work/root.done"
fi

# A processor as the kernel tells of it; it must match the emulated one, or libraries run instructions that it lacks.
cpuinfo() {
  local part features="fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
  local dot="atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
  case $1 in
    cortex-a53) part=0xd03 ;; cortex-a72) part=0xd08 ;;
    cortex-a76) part=0xd0b features+=" $dot" ;; neoverse-n1) part=0xd0c features+=" $dot ssbs" ;;
    max) part=0xd40 features+=" $dot sve asimdfhm i8mm bf16 svei8mm svebf16" ;;
    *) skip "no processor $1 here: cortex-a53, cortex-a72, cortex-a76, neoverse-n1 or max" ;;
  esac
  for core in 0 1; do
    printf 'processor\t: %s\nBogoMIPS\t: 108.00\nFeatures\t: %s\nCPU implementer\t: 0x41\n' "$core" "$features"
    printf 'CPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: %s\nCPU revision\t: 1\n\n' "$part"
  done
}
for cpu in $CPUS; do cpuinfo "$cpu" >"$root/opt/cpuinfo/$cpu"; done
arm() { # CPU COMMAND...
  unshare --user --map-root-user --mount --pid --fork --kill-child sh tests/aarch64/jail.sh "$root" "$1" "$qemu" "${@:2}"
}

pins=$("$PYTHON" -c 'import importlib.metadata as m, sys; print(*(f"{n}=={m.version(n)}" for n in sys.argv[1:]))' \
  numpy pillow onnxruntime openvino simplejpeg click rich onnx pytest hypothesis)
if [ "$(cat "$work/pins.txt" 2>/dev/null)" != "$pins" ]; then
  say "wheels for aarch64, of the versions that $PYTHON has"
  rm -rf "$root/opt/site"
  platforms=$(for glibc in 36 35 34 31 28 27 26 17; do printf -- '--platform manylinux_2_%s_aarch64 ' $glibc; done)
  # shellcheck disable=SC2086 # words
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-compile --target "$root/opt/site" \
    --only-binary=:all: --implementation cp --python-version 3.11 --abi cp311 --abi abi3 --abi none \
    $platforms --platform manylinux2014_aarch64 $pins >"$work/pip.log" 2>&1 || skip "pip failed: see $work/pip.log"
  echo "$pins" >"$work/pins.txt"
fi
rm -rf "$root/opt/checkout" && mkdir -p "$root/opt/checkout"
tar cf - --exclude=__pycache__ pyproject.toml README.md docs runtime export benchmarks pipeline tests | tar xf - -C "$root/opt/checkout"
sources=/opt/checkout/runtime:/opt/checkout/export:/opt/checkout/benchmarks:/opt/checkout/pipeline
export EMULATED_PYTHONPATH=$sources:/opt/site:/opt/checkout/tests OMP_NUM_THREADS=1
export PYTHONPATH=$PWD/runtime:$PWD/export:$PWD/benchmarks:$PWD/pipeline:$PWD/tests
status=0

if [ ! -e "$bundle/manifest.json" ]; then
  say "no bundle at $bundle: the demo's, without training"
  bundle=$work/runs/traffic-lights/bundle
  "$PYTHON" -m edgekiln.pipeline run recipes/traffic-lights.toml --quiet --runs "$work/runs" --set finetune.epochs=0 \
    --set benchmark.enabled=false --set variants.int8.calibration_images=128 >"$work/run.log" || { cat "$work/run.log"; exit 1; }
fi
say "test vectors, written by this machine"
rm -rf "$root/opt/bundle" "$root/opt/vectors"
cp -rL "$bundle" "$root/opt/bundle"
"$PYTHON" -m edgekiln.pipeline pack "$bundle" --vectors "$root/opt/vectors"
for cpu in $CPUS; do
  say "$cpu"
  arm "$cpu" python3 /opt/checkout/tests/aarch64/vectors.py /opt/bundle /opt/vectors || status=1
done
if [ -n "$TESTS" ]; then
  say "tests on ${CPUS%% *}"
  # shellcheck disable=SC2086 # words
  arm "${CPUS%% *}" env -C /opt/checkout/tests/runtime python3 -m pytest -q -p no:cacheprovider \
    -m 'not slow and not gpu' $TESTS || status=1
fi
say "${CPUS##* } as a device over ssh, and this machine: doctor, canaries, verdicts, fleet page"
device=0
"$PYTHON" tests/aarch64/fleet.py "$root" "${CPUS##* }" "$qemu" "$work/fleet" || device=$?
[ $device = 0 ] || [ $device = 5 ] || status=1
say "done: $([ $status = 0 ] && echo 'all agree' || echo 'NOT all agree')"
exit $status
