"""Classifies video files with a trained run.

python tools/predict.py --run_dir=/runs/1 holiday.mp4 street.avi
"""

import json
import sys

from absl import flags

import cli

_RUN_DIR = flags.DEFINE_string("run_dir", None, "A run of tools/train.py.", required=True)
_JSON = flags.DEFINE_bool("json", False, "One JSON object per line, for programs.")


def main(arguments: list[str]) -> int:
    """Videos -> ranked class probabilities; 1 if any video could not be read."""
    if not arguments:
        cli.usage_error("name at least one video")
    cli.load_tensorflow()
    from vidpipe import predict

    code = 0
    for prediction in predict.predict(_RUN_DIR.value, arguments):
        if prediction.error:
            print(f"predict.py: {prediction.path}: {prediction.error}", file=sys.stderr)
            code = 1
        elif _JSON.value:
            line = {
                "video": prediction.path,
                "predicted": prediction.predicted,
                "probabilities": prediction.probabilities,
            }
            print(json.dumps(line), flush=True)
        else:
            print(prediction.path)
            for name, probability in prediction.probabilities.items():
                print(f"  {probability:7.2%}  {name}")
    return code


if __name__ == "__main__":
    cli.run(main)
