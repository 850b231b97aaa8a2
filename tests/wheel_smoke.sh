#!/bin/sh
# The wheel alone, in an environment of its own (heavy packages shared with .venv), run from
# another folder: what an editable install would hide.
set -eu
root=$(pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$root/.venv/bin/python" -m hatchling build -t wheel -d "$work/dist" >/dev/null
"$root/.venv/bin/python" -m venv --without-pip "$work/venv"
"$root/.venv/bin/python" -m pip --python "$work/venv/bin/python" install --quiet \
    --disable-pip-version-check --no-deps "$work"/dist/*.whl
site=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
"$root/.venv/bin/python" - "$site" <<'PYTHON'
import pathlib, sys, sysconfig
# Packages of .venv, without pointer-rl itself: a .pth that leaves out the editable install.
shared = pathlib.Path(sysconfig.get_paths()["purelib"])
for entry in shared.iterdir():
    if "pointer_rl" not in entry.name and not (pathlib.Path(sys.argv[1]) / entry.name).exists():
        (pathlib.Path(sys.argv[1]) / entry.name).symlink_to(entry)
PYTHON
test -d "$site/pointer_rl_glyphs/model"
if [ -e "$site/pointer_rl_glyphs/training" ]; then
    echo "the wheel contains the training code of the glyph model" >&2
    exit 1
fi
cd "$work"
export POINTER_RL_CACHE="$work/cache"
"$work/venv/bin/python" -c "
import pointer_rl, sys
assert '$work' in pointer_rl.__file__, pointer_rl.__file__"
"$work/venv/bin/pointer-rl" --version
"$work/venv/bin/pointer-rl" plugins
"$work/venv/bin/pointer-rl" generate --output-path rl.json --limit 3
"$work/venv/bin/pointer-rl" validate rl.json

# A plugin of one's own: written, installed, passes its tests, and is used.
"$work/venv/bin/pointer-rl" plugins new tint --kind backend
"$root/.venv/bin/python" -m pip --python "$work/venv/bin/python" install --quiet --no-index \
    --disable-pip-version-check --no-deps --no-build-isolation ./pointer-rl-tint
"$work/venv/bin/python" -m pytest -q -W error pointer-rl-tint
"$work/venv/bin/pointer-rl" plugins check tint
"$work/venv/bin/pointer-rl" generate --backend tint --output-path tint.json --limit 3
"$work/venv/bin/pointer-rl" validate tint.json
echo "wheel smoke test: passed"
