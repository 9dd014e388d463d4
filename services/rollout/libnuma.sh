#!/usr/bin/env bash
# Give a virtual environment libnuma.so.1, which vLLM's CPU kernels load, where the system has none: libnuma.sh VENV
# Debian's package is unpacked without root, and every Python of the environment loads the library at its start.
set -euo pipefail

environment=$1
library=libnuma.so.1 package=libnuma1

loads() { "$environment/bin/python" -c "import ctypes; ctypes.CDLL('$library')" 2> /dev/null; }

download() {
  cd "$scratch"
  apt-get -q download "$package" && return
  # The system's lists of packages may be missing, and updating them needs root.
  mkdir -p lists/partial
  local private=(-o "Dir::State::Lists=$scratch/lists" -o "Dir::Cache=$scratch/apt" -o APT::Sandbox::User=)
  apt-get -q "${private[@]}" update && apt-get -q "${private[@]}" download "$package"
}

if loads; then exit 0; fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if (download && dpkg-deb -x "$package"_*.deb unpacked) > "$scratch/log" 2>&1; then
  install -D -m 644 "$(readlink -f "$scratch"/unpacked/usr/lib/*/"$library")" "$environment/lib/$library"
  packages=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "import ctypes, sys; ctypes.CDLL(sys.prefix + '/lib/$library')" > "$packages/mor_libnuma.pth"
  loads && exit 0
fi
tail -n 3 "$scratch/log" >&2
cat >&2 <<MESSAGE
This machine lacks $library, which vLLM's CPU kernels load, and Debian's package $package could not be unpacked. Install it
and run make again:
  apt-get install $package      (Fedora, RHEL: dnf install numactl-libs)
MESSAGE
exit 1
