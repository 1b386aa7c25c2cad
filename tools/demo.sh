#!/usr/bin/env bash
# Runs the whole job: converts videos, trains, evaluates, and predicts one video.
#   tools/demo.sh [TRAIN_FLAGS]              on generated videos and a random backbone; fails below 90 % accuracy
#   tools/demo.sh VIDEO_DIR [TRAIN_FLAGS]    on your videos in class folders, with ImageNet weights
# Results go to $DEMO_DIR (default: demo).
set -euo pipefail
video_dir=""
if [ $# -gt 0 ] && [[ "$1" != -* ]]; then
    [ -d "$1" ] || { echo "demo.sh: there is no folder $1. Give a folder with one subfolder per class." >&2; exit 1; }
    video_dir=$(cd "$1" && pwd)
    shift
fi
source "$(dirname "$0")/venv.sh"

demo="${DEMO_DIR:-demo}"
rm -rf "$demo"
run() {
    printf '\n$ python %s\n' "$*"
    "$python" "$@"
}
SECONDS=0

if [ -z "$video_dir" ]; then
    run tools/make_demo_videos.py --output_dir="$demo" --seed="${SEED:-1}"
    run tools/convert_videos.py --video_dir="$demo/videos" --ucf101_lists="$demo/lists" \
        --output_dir="$demo/records" --num_frames=10 --image_size=48
    run tools/train.py --data_dir="$demo/records" --run_dir="$demo/run" --backbone_weights=none \
        --epochs=15 --label_smoothing=0 --ema=0 --seed="${SEED:-1}" "$@"
    videos="$demo/videos"
else
    run tools/convert_videos.py --video_dir="$video_dir" --output_dir="$demo/records"
    run tools/train.py --data_dir="$demo/records" --run_dir="$demo/run" "$@"
    videos="$video_dir"
fi

# Class folders without a test split are evaluated on their validation split.
read -r split video < <("$python" - "$demo/records" <<'END'
import csv, json, sys
from pathlib import Path

records = Path(sys.argv[1])
splits = json.loads((records / "dataset_info.json").read_text())["splits"]
split = "test" if splits["test"] else "val"
with (records / "videos.csv").open(newline="") as file:
    rows = [row for row in csv.DictReader(file) if (row["split"], row["status"]) == (split, "ok")]
if not rows:
    sys.exit("demo.sh: there is neither a test nor a validation split. Give more videos per class.")
print(split, min(row["video_id"] for row in rows))
END
)
run tools/evaluate.py --data_dir="$demo/records" --run_dir="$demo/run" --split="$split"
run tools/predict.py --run_dir="$demo/run" "$videos/$video"

"$python" - "$demo" "$split" "$SECONDS" "$video_dir" <<'END'
import json, sys
from pathlib import Path

demo, split, seconds, video_dir = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
metrics = json.loads((demo / f"run/eval_{split}/metrics.json").read_text())
info = json.loads((demo / "records/dataset_info.json").read_text())
clips = {name: sum(shard["clips"] for shard in shards) for name, shards in info["splits"].items()}
low, high = metrics["accuracy_ci95"]
without_order = "" if video_dir else "; without the order of the frames at most 0.500"
print(f"""
The demo took {seconds} s.
  clips            {clips["train"]} train, {clips["val"]} val, {clips["test"]} test, of {len(info["classes"])} classes
  {split + " accuracy":15}  {metrics["accuracy"]:.3f}  (95 % interval {low:.3f} to {high:.3f}, n = {metrics["num_clips"]})
  majority class   {metrics["majority_accuracy"]:.3f}{without_order}
Report: {demo}/run/eval_{split}/report.html""")
if not video_dir and metrics["accuracy"] < 0.9:
    sys.exit("The demo failed: its test accuracy is below 0.90.")
END
