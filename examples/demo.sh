#!/bin/sh
# The main job, shown: a platform, a TensorFlow 1 program as it is, trainings that are killed and go on, alone and as a gang.
set -eu
cd "$(dirname "$0")"

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); else bold= plain=; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
show() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; "$@"; }

say '1. The platform, on this machine'
show danlu up

say '2. A TensorFlow 1 program, unchanged (its environment is built once; this takes a minute)'
echo 'The variable keeps what TensorFlow says of missing GPUs off the screen; nothing else hangs on it.'
(cd linear-regression-tf1 &&
	show danlu run --env tensorflow-1 --var TF_CPP_MIN_LOG_LEVEL=3 -- python linear_regression.py)

say '3. A training on real digits, with checkpoints. We kill it in the middle: kill -9'
field() { danlu get job "$1" -o json | python3 -c "import json,sys; print(json.load(sys.stdin)['$2'])"; }
home=$(danlu status -o json | python3 -c 'import json,sys; print(json.load(sys.stdin)["home"])')

# waits until a job has printed something; shows why where it has ended before
printed() {
	until danlu logs "$1" 2>/dev/null | grep -q "$2"; do
		case $(field "$1" state) in failed | cancelled | succeeded) danlu describe job "$1"; exit 1 ;; esac
		sleep 0.3
	done
}

# the process that a job's first attempt told of in its status: of the runner, or of a task
process_of() {
	python3 - "$home/attempts/$(field "$1" id)-1/status" "$2" <<'PYTHON'
import json, sys
events = map(json.loads, open(sys.argv[1]))
print(next(e["pid"] for e in events if e["event"] == "runner" == sys.argv[2] or e.get("task") == sys.argv[2]))
PYTHON
}

job=$(cd digits-checkpoints && danlu run --detach --cpu 1 --env sklearn -o name -- python train.py | sed 's,.*/,,')
printf '%s$ danlu run --detach --cpu 1 --env sklearn -- python train.py%s\njob %s\n' "$bold" "$plain" "$job"
printed "$job" 'epoch *8'
say 'kill -9 of its runner, as if the machine had failed: the attempt is repeated, from its newest checkpoint'
show kill -9 "$(process_of "$job" runner)"
show danlu logs -f "$job"

say '4. What it leaves'
show danlu describe job "$job"
show danlu metrics "$job"
show danlu artifacts ls "$job"
to=$(mktemp -d)/outputs
show danlu artifacts get "$job" --to "$to"
ls -l "$to"

say '5. Distributed: a parameter server and two workers, TensorFlow 1 of 2018. We kill a worker in the middle'
gang=$(cd digits-ps-tf1 && danlu run --detach --env tensorflow-1 --ps 1 --worker 2 --cpu 0.3 --retries 2 --grace 5s -o name \
	-- python train.py | sed 's,.*/,,')
printf '%s$ danlu run --detach --env tensorflow-1 --ps 1 --worker 2 --cpu 0.3 --retries 2 -- python train.py%s\njob %s\n' \
	"$bold" "$plain" "$gang"
printed "$gang" 'step *1[0-9][0-9][0-9] '
say 'kill -9 of worker 1: the gang ends as one, and begins again from its newest checkpoint'
show kill -9 "$(process_of "$gang" worker-1)"
show danlu wait "$gang"
printf '%s$ danlu logs %s --task worker-0 2>/dev/null%s   (what it printed; TensorFlow writes its warnings to stderr)\n' \
	"$bold" "$gang" "$plain"
danlu logs "$gang" --task worker-0 2>/dev/null
show danlu describe job "$gang"

say 'Now you'
cat <<TEXT
  cd examples/hello && danlu run -- python hello.py     your own folder, as a job
  danlu get jobs                                        what there is
  danlu why NAME                                        why a job waits, or how it ended
  danlu down                                            stop the platform; jobs go on unless --jobs

  danlu is in $(command -v danlu); to type it as above:
  export PATH="$(dirname "$(command -v danlu)"):\$PATH"
TEXT
