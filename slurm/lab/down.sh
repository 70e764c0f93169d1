#!/bin/bash
# End what up.sh [DIRECTORY] started, jobs first, and forget it. Processes are found by the lab's pid files alone.
set -uo pipefail
lab=$(realpath -m "${1:-/tmp/marginalia-lab}")
[ -e "$lab/env.sh" ] || exit 0
# shellcheck source=/dev/null
. "$lab/env.sh"
# stop NAME FILE...: end the processes of pid files, those that are what they were
stop() {
  local name=$1 file pid running=()
  shift
  for file; do
    pid=$(cat "$file" 2>/dev/null)
    if [[ $(cat "/proc/${pid:-none}/comm" 2>/dev/null) == "$name"* ]]; then kill "$pid" && running+=("$pid"); fi
  done
  [ ${#running[@]} != 0 ] || return 0
  for _ in $(seq 50); do kill -0 "${running[@]}" 2>/dev/null || return 0; sleep 0.1; done
  kill -KILL "${running[@]}" 2>/dev/null
}
if timeout 5 scontrol ping >/dev/null 2>&1; then
  timeout 5 squeue --noheader --format=%A | sort -u | xargs --no-run-if-empty timeout 10 scancel --quiet 2>/dev/null
  for _ in $(seq 100); do [ -n "$(timeout 5 squeue --noheader --states=R,CG 2>/dev/null)" ] || break; sleep 0.1; done
fi
stop slurmd "$lab"/slurmd-*.pid
stop slurmctld "$lab/slurmctld.pid"
stop munged "$lab/munged.pid"
sed "/# $(basename "$lab")\$/d" /etc/hosts >"$lab/hosts" && cat "$lab/hosts" >/etc/hosts
rm -rf "$lab"
