#!/bin/bash
# End what up.sh [DIRECTORY] started, jobs first, and forget it. Processes are found by the lab's pid files alone.
set -uo pipefail
lab=$(realpath -m "${1:-/tmp/marginalia-lab}")
[ -e "$lab/env.sh" ] || exit 0
# shellcheck source=/dev/null
. "$lab/env.sh"
# stop NAME FILE: end the process of a pid file, if it is what it was
stop() {
  local pid
  pid=$(cat "$2" 2>/dev/null) && [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$1"* ]] || return 0
  kill "$pid"
  for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.1; done
  kill -KILL "$pid"
}
if timeout 5 scontrol ping >/dev/null 2>&1; then
  timeout 5 squeue --noheader --format=%A | sort -u | xargs --no-run-if-empty timeout 10 scancel --quiet 2>/dev/null
  for _ in $(seq 100); do [ -n "$(timeout 5 squeue --noheader --states=R,CG 2>/dev/null)" ] || break; sleep 0.1; done
fi
for file in "$lab"/slurmd-*.pid; do stop slurmd "$file"; done
stop slurmctld "$lab/slurmctld.pid"
stop munged "$lab/munged.pid"
sed "/# $(basename "$lab")\$/d" /etc/hosts >"$lab/hosts" && cat "$lab/hosts" >/etc/hosts
rm -rf "$lab"
