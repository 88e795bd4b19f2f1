# Sourced by every script: finds Python, and makes the clone ready to run.
# Afterwards $root is the repository and `run` starts its Python with the repository's packages.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The comment at the head of a script is its help.
case "${1-}" in
  -h | --help)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.14 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  echo "No Python 3.11 or newer was found. Install one, or name it with PYTHON=/path/to/python." >&2
  return 1
}

# setup stack|dev: install what that level needs; nothing to do takes a tenth of a second.
setup() {
  local python
  python=$(find_python)
  # -P: the caller's directory may hold modules of the same names, and is no place to import from.
  PYTHONPATH="$root" "$python" -P -m local.install "$1"
}

run() {
  PYTHONPATH="$root" exec "$root/.venv/bin/python" -P "$@"
}
