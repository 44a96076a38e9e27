#!/usr/bin/env bash
# A disk that is full in the middle of a run: a tmpfs of 4 MB (needs root). The run must end with one sentence that says
# what to do, and go on to the same digest once there is room.
set -u
cd "$(dirname "$0")/.."
POTLUCK=${POTLUCK:-.venv/bin/potluck}
place=$(mktemp -d)
mount -t tmpfs -o size=4m tmpfs "$place" || exit 1
trap 'umount "$place"; rmdir "$place"' EXIT
words=(recipes/digits.toml --quiet --set rounds=60 --set model.name=resnet20 --set engine.kind=inprocess --set data.limit=200)
head -c 1750000 /dev/zero > "$place/ballast"
"$POTLUCK" run "${words[@]}" --out "$place/run"
echo "exit code $?"
echo "checkpoint of round $(grep -o '"round": [0-9]*' "$place/run/state/manifest.json")"
rm "$place/ballast"
mount -o remount,size=40m "$place"
"$POTLUCK" resume "$place/run" --quiet && grep state_sha256 "$place/run/summary.json"
whole=$(mktemp -d)
"$POTLUCK" run "${words[@]}" --out "$whole/run" && grep state_sha256 "$whole/run/summary.json"
rm -rf "$whole"
