#!/usr/bin/env bash
# Finds or makes the Python environment.
#
#   bash recipe/setup.sh      prints the environment's Python on standard output
#   source recipe/setup.sh    sets ROOT (the checkout) and PYTHON, puts ROOT on PYTHONPATH
#
# An active environment (venv, conda), or a container's Python, that satisfies requirements.txt is
# used as it is. Otherwise a virtual environment of the newest Python found is made and installed
# into, by uv where there is one, else by pip; again only when requirements.txt or GNP_JAX has
# changed or the last installation did not end well.
#
#   GNP_JAX   the build of jax: cpu, cuda13 or tpu. Unset: the one already there, else cpu.
#   GNP_VENV  the folder of the virtual environment; an active one is then left alone.
#             Unset: .venv in the checkout.

if [[ "${BASH_SOURCE[0]:-}" != "$0" ]]; then # sourced: the work is done in a process of its own
  ROOT="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]:-$0}")/.." && pwd -P)" || return 1
  # shellcheck disable=SC2034 # for the script that sources this one
  PYTHON="$(bash "$ROOT/recipe/setup.sh")" || return
  case ":${PYTHONPATH:-}:" in
    *":$ROOT:"*) ;;
    *) export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" ;;
  esac
  return 0
fi

set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }

fail() { # STATUS MESSAGE
  say "$2"
  exit "$1"
}

# Standard output: PYTHON's own path, or (status 1) what it lacks.
satisfies() { # PYTHON BUILD; an empty BUILD: any
  "$1" -P -c '
import importlib.metadata, sys

try:
    from packaging.requirements import Requirement
except ImportError:
    sys.exit(print("packaging") or 1)

def installed(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

lines = [line.split("#")[0].strip() for line in open(sys.argv[1], encoding="utf-8")]
needs = [Requirement(line) for line in lines if line]
needs += [Requirement(name) for name in sys.argv[2].split()]
lacking = []
for need in needs:
    if need.marker is not None and not need.marker.evaluate():
        continue
    version = installed(need.name)
    if version is None:
        lacking.append(f"{need.name}{need.specifier}")
    elif not need.specifier.contains(version, prereleases=True):
        lacking.append(f"{need.name}{need.specifier} (it has {version})")
if lacking:
    rest = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    sys.exit(print(", ".join(lacking[:3]) + rest) or 1)
print(sys.executable)
' "$requirements" "$(plugin "$2")" 2>/dev/null
}

plugin() { # BUILD: the distribution that tells it from the others
  case "$1" in
    cuda13) echo jax-cuda13-plugin ;;
    tpu) echo libtpu ;;
  esac
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
  local name
  for name in python3.13 python3.12 python3.11 python3 python; do
    if command -v "$name" >/dev/null && new_enough "$name"; then
      command -v "$name"
      return
    fi
  done
  return 1
}

can_apt() { [[ "$(id -u)" == 0 ]] && command -v apt-get >/dev/null; }

apt() { # PACKAGE...; what apt-get prints is shown only where it fails
  local output
  say "installing $* with apt-get"
  if ! output="$({ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@"; } 2>&1)"; then
    printf '%s\n' "$output" >&2
    fail 1 "apt-get could not install $*"
  fi
}

has_venv() { "$1" -c 'import ensurepip, venv; ensurepip.version()' >/dev/null 2>&1; }

# Debian's Python comes without the part that makes virtual environments.
base_python() {
  local base package
  if ! base="$(find_python)" && can_apt; then
    apt python3 python3-venv
    base="$(find_python)" || true
  fi
  [[ -n "$base" ]] || fail 1 "no Python 3.11 or newer on PATH: install one, such as python3.13"
  if ! has_venv "$base"; then
    package="python$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    can_apt || fail 1 "$base cannot make virtual environments: install $package (as root: apt-get install $package)"
    apt "$package"
    has_venv "$base" || fail 1 "$base cannot make virtual environments, although $package is installed"
  fi
  printf '%s\n' "$base"
}

# The lock belongs to the open file 9, which this shell keeps; flock(1) is not on every system.
lock() { # PYTHON
  "$1" -c '
import fcntl, sys

try:
    try:
        fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"setup: waiting for another set-up of {sys.argv[1]}", file=sys.stderr)
        fcntl.flock(9, fcntl.LOCK_EX)
except OSError as error:
    sys.exit(f"setup: cannot lock {sys.argv[1]}: {error.strerror}")
' "$venv"
}

built() { # the build that the finished environment has; nothing where it is not finished
  [[ -s "$state" ]] && sed -n '1s/^jax: //p' "$state"
}

wanted() { # the state file of a finished installation: what it was asked for
  printf 'jax: %s\n' "$build"
  cat "$requirements"
}

ready() {
  [[ -s "$state" ]] && wanted | cmp -s - "$state" && satisfies "$venv/bin/python" "$build" >/dev/null
}

make_or_update() { # PYTHON
  local what=() extra=() begun=$SECONDS
  if [[ "$(built)" == "$build" ]] && "$venv/bin/python" -I -m pip --version >/dev/null 2>&1; then
    say "updating $venv"
    : >"$state"
  else # none, an unfinished one, or one with another build of jax: begin afresh
    say "making $venv with $("$1" --version), jax for $build; this takes a minute or a few"
    : >"$state"
    find "$venv" -mindepth 1 -maxdepth 1 ! -name "${state##*/}" -exec rm -rf {} +
    "$1" -m venv "$venv" >&2 || fail 1 "$1 could not make a virtual environment in $venv"
  fi
  [[ "$build" == cpu ]] || extra=("jax[$build]")
  what=(--quiet -r "$requirements" ${extra[@]+"${extra[@]}"})
  # uv knows nothing of pip's own configuration: where it fails, pip may not. -I: packages that
  # PYTHONPATH or the user's own folder offers must not count as installed.
  { command -v uv >/dev/null && uv pip install --python "$venv/bin/python" "${what[@]}" >&2; } ||
    "$venv/bin/python" -I -m pip install --disable-pip-version-check --no-input --no-compile \
      "${what[@]}" >&2 ||
    fail 1 "could not install requirements.txt into $venv (see above); the next call begins again"
  # pip would compile on one core, uv not at all. What does not compile here would not have there, and
  # is not imported; what is left out is imported in part, and compiled then.
  "$venv/bin/python" -I -m compileall -qq -j 0 -x '/(tests|pip|graph_objs)/' "$venv/lib" >&2 || true
  wanted >"$state"
  say "done in $((SECONDS - begun)) s"
}

set_up() {
  local base
  if [[ -e "$venv" && ! -e "$state" ]]; then
    [[ -d "$venv" ]] || fail 2 "$venv is not a folder: GNP_VENV chooses another place"
    [[ -z "$(ls -A -- "$venv")" ]] ||
      fail 2 "$venv exists and was not made by this script: remove it, or GNP_VENV chooses another place"
  fi
  base="$(base_python)"
  { mkdir -p -- "$venv" && : >>"$state"; } 2>/dev/null ||
    fail 1 "cannot write in $venv: GNP_VENV chooses another place"
  exec 9>>"$state"
  lock "$base"
  ready || make_or_update "$base"
}

root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
requirements="$root/requirements.txt"
venv="${GNP_VENV:-$root/.venv}"
[[ "$venv" == /* ]] || venv="$PWD/$venv"
state="$venv/.gnp-setup"

case "${GNP_JAX:-}" in
  "" | cpu | cuda13 | tpu) ;;
  *) fail 2 "GNP_JAX=$GNP_JAX: use cpu, cuda13 or tpu" ;;
esac

if [[ -z "${GNP_VENV:-}" && -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]] && python="$(command -v python)"; then
  if answer="$(satisfies "$python" "${GNP_JAX:-}")"; then
    say "using the active environment: $answer"
    printf '%s\n' "$answer"
    exit
  elif [[ "$python" != "$venv/"* ]]; then
    say "the active environment ($python) lacks ${answer:-Python 3.11 or newer}; using $venv"
  fi
fi

build="${GNP_JAX:-$(built || true)}"
build="${build:-cpu}"
if ! ready; then
  if [[ -z "${GNP_VENV:-}" ]] && answer="$(satisfies python3 "${GNP_JAX:-}")"; then
    say "using $answer, which satisfies requirements.txt"
    printf '%s\n' "$answer"
    exit
  fi
  set_up
fi
printf '%s\n' "$venv/bin/python"
