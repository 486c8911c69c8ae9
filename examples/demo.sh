#!/bin/sh
# The main job, shown: a platform, a TensorFlow 1 program as it is, a training that is killed and goes on, what it leaves.
set -eu
cd "$(dirname "$0")"

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); else bold= plain=; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
show() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; "$@"; }

say '1. The platform, on this machine'
show danlu up

say '2. A TensorFlow 1 program, unchanged (its environment is built once; this takes a minute)'
(cd linear-regression-tf1 && show danlu run --env tensorflow-1 -- python linear_regression.py)

say '3. A training on real digits, with checkpoints. We kill it in the middle: kill -9'
job=$(cd digits-checkpoints && danlu run --detach --cpu 1 --env sklearn -o name -- python train.py | sed 's,.*/,,')
printf '%s$ danlu run --detach --cpu 1 --env sklearn -- python train.py%s\njob %s\n' "$bold" "$plain" "$job"
until danlu logs "$job" 2>/dev/null | grep -q 'epoch *8'; do
	case $(danlu get job "$job" -o json | python3 -c 'import json,sys; print(json.load(sys.stdin)["state"])') in
	failed | cancelled | succeeded) danlu describe job "$job"; exit 1 ;;
	esac
	sleep 0.3
done
home=$(danlu status -o json | python3 -c 'import json,sys; print(json.load(sys.stdin)["home"])')
id=$(danlu get job "$job" -o json | python3 -c 'import json,sys; print(json.load(sys.stdin)["id"])')
runner=$(python3 - "$home/attempts/$id-1/status" <<'PYTHON'
import json, sys
print(next(e["pid"] for e in map(json.loads, open(sys.argv[1])) if e["event"] == "runner"))
PYTHON
)
say 'kill -9 of its runner, as if the machine had failed: the attempt is repeated, from its newest checkpoint'
show kill -9 "$runner"
show danlu logs -f "$job"

say '4. What it leaves'
show danlu describe job "$job"
show danlu metrics "$job"
show danlu artifacts ls "$job"
to=$(mktemp -d)/outputs
show danlu artifacts get "$job" --to "$to"
ls -l "$to"

say 'Now you'
cat <<TEXT
  cd examples/hello && danlu run -- python hello.py     your own folder, as a job
  danlu get jobs                                        what there is
  danlu why NAME                                        why a job waits, or how it ended
  danlu down                                            stop the platform; jobs go on unless --jobs

  danlu is in $(command -v danlu); to type it as above:
  export PATH="$(dirname "$(command -v danlu)"):\$PATH"
TEXT
