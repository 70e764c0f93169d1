# shellcheck shell=bash
# Sourced by the scripts of this folder, which src.submit hands to sbatch. MARGINALIA_* are set by src/cluster/batch.py;
# a task is a line of a manifest, and runs.txt beside it has the task's run directory and that of its SFT base.

say() {
  printf 'slurm: %s %s\n' "$(date '+%F %T')" "$*"
}

# open_task MANIFEST INDEX: what is said goes to the run directory from here on; modules, caches, paths.
open_task() {
  manifest=$1 index=$2 run='' base='' stopping=''
  job=$SLURM_JOB_ID
  [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  IFS=$'\t' read -r run base < <(sed -n "$((index + 1))p" "${manifest%/*}/runs.txt")
  run=${run#-} base=${base#-}
  if [ -n "$run" ]; then
    mkdir -p "$run/slurm" || exit 1
    exec >>"$run/slurm/${SLURM_JOB_NAME#marginalia-}-$job.out" 2>&1
  fi
  say "job $job on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1)): task $index of $manifest"
  export PYTHONPATH=$MARGINALIA_ROOT${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
  # srun does not take it from sbatch since SLURM 22.05
  [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
  load_modules
  # of this start of this job alone; a flag of an earlier start is stale
  mkdir -p "$MARGINALIA_SUBMISSION/stop" || exit 1
  export MARGINALIA_STOP_FILE=$MARGINALIA_SUBMISSION/stop/$SLURM_JOB_ID
  rm -f "$MARGINALIA_STOP_FILE"
  touch "$MARGINALIA_STOP_FILE.start"
}

load_modules() {
  [ -n "${MARGINALIA_MODULES:-}" ] || return 0
  # shellcheck disable=SC1091  # of the node
  type module >/dev/null 2>&1 || { set +u && . /etc/profile && set -u; }
  local name
  for name in $MARGINALIA_MODULES; do
    module load "$name" || { say "there is no module $name on $(hostname); see cluster.modules" && exit 1; }
  done
}

# in_step COMMAND...: an srun step of one process a node, in the container if there is one, until it ends; sets $code.
# Meanwhile USR1 and TERM (the time limit comes, or another job needs the nodes) call ask_to_stop.
in_step() {
  local step=(srun --kill-on-bad-exit=1 --ntasks-per-node=1) inside=()
  if [ -n "${MARGINALIA_CONTAINER:-}" ]; then
    local places=$MARGINALIA_ROOT,$PWD,$MARGINALIA_SUBMISSION${run:+,${run%/*}}${MARGINALIA_CONF:+,$MARGINALIA_CONF} place
    for place in "${HF_HOME:-}" "${TORCH_EXTENSIONS_DIR:-}" "${MARGINALIA_CACHE:-}"; do
      [ -z "$place" ] || { mkdir -p "$place" && places+=,$place; }
    done
    if [ "$MARGINALIA_CONTAINER_RUNTIME" = apptainer ]; then
      inside=(apptainer exec --nv --bind "$places" --pwd "$PWD" "$MARGINALIA_CONTAINER")
    else
      local mounts=''
      for place in ${places//,/ }; do mounts+=${mounts:+,}$place:$place; done
      step+=("--container-image=$MARGINALIA_CONTAINER" "--container-mounts=$mounts" "--container-workdir=$PWD")
    fi
  fi
  trap 'stopping=1' USR1 TERM
  "${step[@]}" bash -c "$step_shell" step ${inside[@]+"${inside[@]}"} "$@" &
  child=$!
  local asker=''
  # wait returns early when a trap runs
  while :; do
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break
    [ -z "$stopping" ] || [ -n "$asker" ] || { say "asked to stop" && ask_to_stop & asker=$!; }
  done
  if [ -n "$asker" ]; then kill "$asker" 2>/dev/null && wait "$asker" 2>/dev/null; fi
  if [ "$code" -gt 128 ]; then # the trap may have run as the step ended: 127 says that its code was the true one
    wait "$child" 2>/dev/null
    local once_more=$?
    [ "$once_more" = 127 ] || code=$once_more
  fi
  rm -f "$MARGINALIA_STOP_FILE"
}

# requeue: start again from the last checkpoint, unless that has brought no step for too long.
requeue() {
  local counted=$MARGINALIA_STOP_FILE.restarts progress count=0 last='' state
  progress="$(value_of step "$run")/$(value_of step "$base")"
  [ ! -e "$counted" ] || read -r count last <"$counted"
  if [ "$progress" = "$last" ]; then count=$((count + 1)); else count=1; fi
  printf '%s %s\n' "$count" "$progress" >"$counted"
  if [ "$count" -gt "$MARGINALIA_RESTARTS" ]; then
    say "given up: $count starts in a row brought no step (cluster.restarts=$MARGINALIA_RESTARTS)"
    exit 1
  fi
  # $job, not SLURM_JOB_ID: that of an array's last task is the array's, and would mean all of its tasks
  # a job that was cancelled, or that SLURM itself puts back, is completing by now: leave it to that
  state=$(squeue --noheader --jobs="$job" --format=%T)
  [ "$state" = RUNNING ] || { say "not queued again by this script: the job is $state" && exit 1; }
  say "queued again, to go on from the last checkpoint"
  scontrol requeue "$job" || exit 1
  sleep 60 # until SLURM ends this start
  exit 0
}

# value_of KEY DIRECTORY: a value of status.json; nothing where there is none.
value_of() {
  [ -z "$2" ] || sed -n 's/^ *"'"$1"'": *"\{0,1\}\([a-z0-9]*\)"\{0,1\},\{0,1\}$/\1/p' "$2/status.json" 2>/dev/null
}

# state_now DIRECTORY: the state that a run wrote in this start; nothing where it wrote none.
state_now() {
  [ -z "$1" ] || [ ! "$1/status.json" -nt "$MARGINALIA_STOP_FILE.start" ] || value_of state "$1"
}

# train_task MANIFEST INDEX: a training on all ranks, or a pass of the reference, which has no run directory.
# Stopped, it is queued again; failed, it fails.
train_task() {
  open_task "$1" "$2"
  ask_to_stop() { # again and again: a flag that is there before the training starts is taken for stale, and removed
    [ -n "$run" ] || kill -TERM "$child"
    while kill -0 "$child" 2>/dev/null && touch "$MARGINALIA_STOP_FILE"; do sleep 2; done
  }
  # torchrun's agent would end the ranks by force soon after a signal: it is to ignore what they heed
  local ignored=''
  [ -z "$run" ] || ignored='trap "" TERM USR1;'
  # shellcheck disable=SC2016  # expands on each node
  step_shell=$ignored'export PET_NODE_RANK=$SLURM_NODEID; exec "$@"'
  local command=("$MARGINALIA_PYTHON")
  if [ $((SLURM_NNODES * MARGINALIA_RANKS)) -gt 1 ]; then
    local first nowhere='ranks have no place to meet'
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    [ -n "$first" ] || { say "$nowhere: scontrol names no first node of $SLURM_JOB_NODELIST" && exit 1; }
    export MARGINALIA_FIRST=$first MARGINALIA_NOWHERE="slurm: $nowhere: the first node, $first, does not resolve on"
    # shellcheck disable=SC2016  # expands on each node
    step_shell='type getent >/dev/null 2>&1 && ! getent hosts "$MARGINALIA_FIRST" >/dev/null &&
      echo "$MARGINALIA_NOWHERE $(hostname); see docs/slurm.md" && exit 1;'$step_shell
    command+=(-m torch.distributed.run --nnodes "$SLURM_NNODES" --nproc-per-node "$MARGINALIA_RANKS")
    command+=(--rdzv-backend static --master-addr "$first" --master-port $((20000 + SLURM_JOB_ID % 10000)))
    command+=(--signals-to-handle SIGHUP)
  fi
  in_step "${command[@]}" -m src.resolved "$manifest" "$index"
  local state
  state=$(state_now "$run")
  # under torchrun 0 also says that a checkpoint was written on demand, of this run or of its base
  if [ "$code" = 0 ] && [ "$state" != stopped ] && [ "$(state_now "$base")" != stopped ]; then
    [ -n "$run" ] && [ "$(value_of state "$run")" != finished ] || exit 0
    say "the training ended without a result"
    exit 1
  fi
  if [ "$code" = 0 ] || [ "$code" = 75 ] || { [ -n "$stopping" ] && [ "$state" != failed ]; }; then requeue; fi
  say "ended with exit code $code"
  exit "$code"
}

# plain_task MANIFEST INDEX: a program of one process that goes on where it was when it is started again.
plain_task() {
  open_task "$1" "$2"
  ask_to_stop() { kill -TERM "$child"; }
  # shellcheck disable=SC2016  # expands on the node
  step_shell='exec "$@"'
  in_step "$MARGINALIA_PYTHON" -m src.resolved "$manifest" "$index"
  [ "$code" != 0 ] || exit 0
  # 143: ended by SIGTERM
  if [ -n "$stopping" ] || [ "$code" = 143 ]; then requeue; fi
  say "ended with exit code $code"
  exit "$code"
}
