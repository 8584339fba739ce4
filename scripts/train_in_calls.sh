#!/usr/bin/env bash
# One call of a training run on GPU machines that are to be had for minutes: go on from where the last call ended, and leave
# in $OUT what the next one needs.
# On such a machine: OUT=folder bash scripts/train_in_calls.sh 7.5      (minutes of this call; more options go to train.py;
# CONFIG=file for another configuration than base.yaml)
# Three calls fill the 22 minutes of scripts/configs/base.yaml. What lies under $OUT then, parts of one archive of at most
# 15 MB each, holds the last checkpoint with its optimiser, or the final model. If the next call gets another machine, put
# the parts into runs/parts. At the end, here: cat runs/parts/part-* | tar xz, then scripts/export_checkpoint.py.
set -euo pipefail
: "${OUT:?expected OUT, the folder that what is brought back goes to}"
cd "$(dirname "$0")/.."
run=runs/gpu
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
if [ ! -e $run ] && compgen -G 'runs/parts/part-*' > /dev/null; then
  cat runs/parts/part-* | tar xz
fi
bring_back() {
  kept=$run/final
  if [ ! -e $kept/training.json ]; then # it is written last
    kept=$(PYTHONPATH=scripts python3 -c "import sys; from pathlib import Path; from train import last_complete_checkpoint
print(last_complete_checkpoint(Path(sys.argv[1])) or '')" $run)
  fi
  if [ -z "$kept" ]; then
    echo "no checkpoint to bring back" >&2
  else
    tar cz $run/log.jsonl "$kept" | split -b 15M - "$OUT/part-"
  fi
}
trap bring_back EXIT # after a failure too
python3 scripts/train.py --config "${CONFIG:-scripts/configs/base.yaml}" --online --output $run --call-minutes "$@"
