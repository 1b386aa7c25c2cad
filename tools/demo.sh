#!/usr/bin/env bash
# The whole job on made-up videos: writes them, converts, trains, evaluates, predicts one. Fails below 90 %.
# Arguments go to train.py, as --precision=float32.
set -euo pipefail
source "$(dirname "$0")/venv.sh"

demo="${DEMO_DIR:-demo}"
rm -rf "$demo"
run() {
    printf '\n$ python %s\n' "$*"
    "$python" "$@"
}
SECONDS=0

run tools/make_demo_videos.py --output_dir="$demo" --seed="${SEED:-1}"
run tools/convert_videos.py --video_dir="$demo/videos" --ucf101_lists="$demo/lists" \
    --output_dir="$demo/records" --num_frames=10 --image_size=48
run tools/train.py --data_dir="$demo/records" --run_dir="$demo/run" --backbone_weights=none \
    --epochs=15 --batch_size=16 --seed="${SEED:-1}" "$@"
run tools/evaluate.py --data_dir="$demo/records" --run_dir="$demo/run" --split=test
run tools/predict.py --run_dir="$demo/run" "$demo/videos/Growing/v_Growing_g01_c01.avi"

"$python" - "$demo" "$SECONDS" <<'END'
import json, sys
from pathlib import Path

demo, seconds = Path(sys.argv[1]), int(sys.argv[2])
metrics = json.loads((demo / "run/eval_test/metrics.json").read_text())
info = json.loads((demo / "records/dataset_info.json").read_text())
clips = {split: sum(shard["clips"] for shard in shards) for split, shards in info["splits"].items()}
low, high = metrics["accuracy_ci95"]
print(f"""
The demo took {seconds} s.
  clips          {clips["train"]} train, {clips["val"]} val, {clips["test"]} test, of {len(info["classes"])} classes
  test accuracy  {metrics["accuracy"]:.3f}  (95 % interval {low:.3f} to {high:.3f}, n = {metrics["num_clips"]})
  by chance      {metrics["majority_accuracy"]:.3f}; without the frames' order at most 0.500
Open next: {demo}/run/eval_test/report.html""")
if metrics["accuracy"] < 0.9:
    sys.exit("The demo failed: its test accuracy is below 0.90.")
END
