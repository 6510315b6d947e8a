#!/usr/bin/env bash
# The CPU kernels on aarch64, by emulation: cross-compiled, and run under qemu-user with a torch for aarch64.
# The accuracy tests of every likelihood hold values and gradients to the bar that x86-64 is held to.
# It downloads torch with its CUDA libraries (3 GB; 8 GB unpacked) and a Python of Debian's for arm64, and takes
# minutes, so `make verify` leaves it out. TESTS names other tests.
source "$(dirname "$0")/common.sh"

[ "$(uname -m)" != aarch64 ] || skip "this is aarch64, where make test does more"
for tool in qemu-aarch64-static aarch64-linux-gnu-g++ apt-get dpkg-deb; do
    command -v "$tool" >/dev/null ||
        skip "there is no $tool here; Debian has qemu-user-static and g++-aarch64-linux-gnu"
done
work="$VERIFY_DIR/aarch64"
root="$work/root" site="$work/site"
mkdir -p "$work"

# Debian's Python and C++ library for arm64, unpacked: apt, by a state of its own, says which packages.
if [ ! -e "$work/.root-made" ]; then
    rm -rf "$root" "$work/apt"
    mkdir -p "$work/apt/lists/partial" "$work/apt/archives/partial" "$root"
    : >"$work/apt/status"
    cat >"$work/apt/conf" <<END
APT::Architecture "arm64"; APT::Architectures { "arm64"; }; APT::Sandbox::User "$(id -un)";
Dir::State "$work/apt"; Dir::State::status "$work/apt/status"; Dir::Cache "$work/apt";
Debug::NoLocking "true";
END
    export APT_CONFIG="$work/apt/conf"
    apt-get -qq update || say "apt-get update did not reach every source (above)" >&2
    apt-get -qq -y --no-install-recommends --download-only install \
        python3 libpython3-dev libgomp1 'libstdc++6' >/dev/null ||
        skip "apt-get has no Python for arm64 in this machine's sources"
    for package in "$work"/apt/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
    # What torch asks about the processor; it does not start on the host's answers.
    mkdir -p "$root/proc" "$root"/sys/devices/system/cpu/cpu{0,1}/regs/identification
    echo 0x410fd083 | tee "$root"/sys/devices/system/cpu/cpu{0,1}/regs/identification/midr_el1 >/dev/null
    echo 0-1 | tee "$root/sys/devices/system/cpu/possible" >"$root/sys/devices/system/cpu/present"
    for processor in 0 1; do
        printf '%s\t: %s\n' processor $processor BogoMIPS 50.00 \
            Features "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid" "CPU implementer" 0x41 \
            "CPU architecture" 8 "CPU variant" 0x0 "CPU part" 0xd08 "CPU revision" 3
        echo
    done >"$root/proc/cpuinfo"
    touch "$work/.root-made"
fi
python="$(realpath "$root/usr/bin/python3")"
version="${python##*/python}" # 3.11

if [ ! -e "$work/.made-for-${NEW_TORCH//[^a-zA-Z0-9.+]/-}" ]; then
    say "downloading $NEW_TORCH for aarch64 and Python $version" >&2
    rm -rf "$site"
    platforms=()
    for minor in $(seq 17 39); do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
    "$PYTHON" -m pip install -q --disable-pip-version-check --target "$site" --only-binary=:all: \
        --python-version "$version" --platform manylinux2014_aarch64 "${platforms[@]}" \
        "$NEW_TORCH" numpy pytest mpmath "pybind11>=2.13" >&2
    touch "$work/.made-for-${NEW_TORCH//[^a-zA-Z0-9.+]/-}"
fi

# The sources of _C but for the two levels of x86-64, with setup.py's flags where they bear on numbers.
run="$work/run"
sources "$run"
torch="$(sed -n "s/^__version__ = '\(.*\)'/\1/p" "$site/torch/version.py")"
say "compiling the kernels against torch $torch" >&2
compile=(aarch64-linux-gnu-g++ -std=c++20 -O3 -fPIC -DNDEBUG -fno-math-errno -fvisibility=hidden -w
    -I csrc -I "$site/pybind11/include" -I "$site/torch/include"
    -I "$site/torch/include/torch/csrc/api/include"
    -I "$root/usr/include/python$version" -idirafter "$root/usr/include"
    -DTORCH_EXTENSION_NAME=_C -DTORCH_TARGET_VERSION=0x020b000000000000 "-DVAE_FAST_BUILD_TORCH=\"$torch\"")
if command -v ccache >/dev/null; then compile=(ccache "${compile[@]}"); fi
export objects="$work/objects"
rm -rf "$objects" && mkdir "$objects"
# shellcheck disable=SC2016  # the inner shell's variables
(cd "$run" && printf '%s\n' csrc/library.cpp csrc/module.cpp csrc/{cpu,norm,step}/*.cpp |
    grep -v _avx | xargs -P "$(nproc 2>/dev/null || echo 2)" -I '{}' bash -c \
        'source={}; "$@" -c "$source" -o "$objects/${source//\//_}.o"' compile "${compile[@]}")
aarch64-linux-gnu-g++ -shared "$objects"/*.o -Wl,--as-needed -L "$site/torch/lib" -ltorch_cpu \
    -o "$run/vae_fast/_C.cpython-${version/./}-aarch64-linux-gnu.so"

emulated() {
    (cd "$run" && PYTHONPATH="$run:$site" OMP_NUM_THREADS=1 \
        qemu-aarch64-static -cpu cortex-a72 -L "$root" "$python" "$@")
}
said="$(emulated -W ignore -c '
import platform, vae_fast
facts = vae_fast.info()
assert platform.machine() == "aarch64" and facts["native cpu"] == "yes", facts
print(facts)')"
say "$said"
# shellcheck disable=SC2086  # TESTS is a list
emulated -m pytest -q -p no:cacheprovider ${TESTS:-tests/likelihoods/test_ops.py -k test_accuracy}
pass "on aarch64, under qemu and torch $torch, the kernels pass the tests of accuracy"
