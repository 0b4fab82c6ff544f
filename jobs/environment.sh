# Sourced by the other jobs: makes .venv once, installs this checkout with the versions of constraints.txt, and
# leaves DTO_ROOT and PATH set. Starts at once when nothing has changed.
DTO_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$DTO_ROOT"
stamp=".venv/.installed-$(cat constraints.txt pyproject.toml jobs/environment.sh | cksum | cut -d' ' -f1)"
if [ ! -f "$stamp" ]; then
  echo "Installing into .venv (once; a few minutes) ..." >&2
  python="$(command -v python3.11 || command -v python3)"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, found $("$python" -V)" >&2; exit 1; }
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,exports,train,anny]'
  rm -f .venv/.installed-*
  touch "$stamp"
fi
export PATH="$DTO_ROOT/.venv/bin:$PATH"
